output "nodes" {
  description = "The nodes that there are, by their host names."
  value       = { for host, node in terraform_data.node : host => { id = node.id } }
}
