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
  description = "When the nodes may be ended whatever runs on them (RFC 3339); empty for never. Not obeyed here."
  type        = string
  default     = ""
}
