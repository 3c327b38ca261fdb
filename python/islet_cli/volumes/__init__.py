"""Disks of realms: partition tables (`gpt`), disk files (`disk`) and encrypted volumes (`crypt`)."""
