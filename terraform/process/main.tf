# Followers as processes of this machine: the smallest module that a pool of the provider `terraform` can have.

terraform {
  required_version = ">= 1.4"
}

resource "terraform_data" "node" {
  for_each = toset(var.hosts)

  # a destroy provisioner knows nothing but its own resource
  input = {
    host      = each.key
    script    = var.boot_script
    directory = "${abspath(path.root)}/${each.key}"
  }

  provisioner "local-exec" {
    command = file("${path.module}/start.sh")
    environment = {
      FLUXBURST_HOST      = self.input.host
      SCRIPT              = self.input.script
      FLUXBURST_DIRECTORY = self.input.directory
    }
  }

  provisioner "local-exec" {
    when    = destroy
    command = file("${path.module}/stop.sh")
    environment = {
      FLUXBURST_DIRECTORY = self.input.directory
    }
  }

  lifecycle {
    # of a node that is there: only its host says which it is
    ignore_changes = [input]
  }
}
