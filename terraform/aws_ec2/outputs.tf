output "nodes" {
  description = "The nodes that there are, by their host names."
  value       = { for host, node in aws_instance.node : host => { id = node.id, address = node.private_ip } }
}
