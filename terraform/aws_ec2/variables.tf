variable "cluster" {
  description = "The fluxburst cluster that orders."
  type        = string
}

variable "order" {
  description = "The order's id. The same order again changes nothing."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]+$", var.order))
    error_message = "An order's id has lower-case letters, digits and hyphens."
  }
}

variable "hosts" {
  description = "The host names of the nodes that are wanted. Fewer than before: the others are given back."
  type        = list(string)
}

variable "boot_script" {
  description = "What a node runs, with its host name in FLUXBURST_HOST. It ends when the node is of no use any more."
  type        = string
}

variable "expires_at" {
  description = "When the nodes may be ended whatever runs on them (RFC 3339); empty for never."
  type        = string
  default     = ""
}

variable "ami" {
  description = "The image of the machines: Flux of the lead's version, cloud-init, and what certificate_command needs."
  type        = string

  validation {
    condition     = startswith(var.ami, "ami-")
    error_message = "An image's id begins with ami-."
  }
}

variable "instance_type" {
  description = "The type of the machines; it has the cores that the pool declares."
  type        = string
}

variable "subnet_id" {
  description = "The subnet of the machines. One subnet is one zone."
  type        = string
}

variable "security_group_ids" {
  description = "The security groups of the machines; they must be able to reach the lead, and nothing has to reach them."
  type        = list(string)
  default     = []
}

variable "instance_profile" {
  description = "The name of the machines' instance profile, such as one that may read the certificate; empty for none."
  type        = string
  default     = ""
}

variable "placement_group" {
  description = "The name of a placement group; empty for none."
  type        = string
  default     = ""
}

variable "spot" {
  description = "Spot machines instead of those on demand."
  type        = bool
  default     = false
}

variable "disk_gib" {
  description = "The size of the machines' disks in GiB; 0 for that of the image."
  type        = number
  default     = 0
}

variable "tags" {
  description = "Further tags of the machines and their disks."
  type        = map(string)
  default     = {}
}
