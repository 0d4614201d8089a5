# Followers on machines of Amazon EC2. Region, credentials and endpoints are those of the service's environment.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

locals {
  tags = merge(var.tags, {
    "fluxburst:cluster" = var.cluster
    "fluxburst:order"   = var.order
    "fluxburst:expires" = var.expires_at
  })
}

resource "aws_instance" "node" {
  for_each = toset(var.hosts)

  ami                    = var.ami
  instance_type          = var.instance_type
  subnet_id              = var.subnet_id
  vpc_security_group_ids = var.security_group_ids
  iam_instance_profile   = var.instance_profile == "" ? null : var.instance_profile
  placement_group        = var.placement_group == "" ? null : var.placement_group

  # the machine ends itself, and must not go on to cost as a stopped one
  instance_initiated_shutdown_behavior = "terminate"

  user_data_base64 = base64gzip(templatefile("${path.module}/user_data.sh.tftpl", {
    host       = each.key
    script     = base64encode(var.boot_script)
    expires_at = var.expires_at
  }))

  metadata_options {
    http_tokens = "required"
  }

  dynamic "instance_market_options" {
    for_each = var.spot ? [1] : []
    content {
      market_type = "spot"
      spot_options {
        spot_instance_type             = "one-time"
        instance_interruption_behavior = "terminate"
      }
    }
  }

  dynamic "root_block_device" {
    for_each = var.disk_gib > 0 ? [var.disk_gib] : []
    content {
      volume_size = root_block_device.value
    }
  }

  tags        = merge(local.tags, { Name = each.key })
  volume_tags = local.tags

  lifecycle {
    # a node that is there stays as it is until it is given back
    ignore_changes = [ami, user_data_base64, instance_type, tags, volume_tags]
  }
}
