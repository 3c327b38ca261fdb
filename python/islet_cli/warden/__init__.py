"""The host daemon that launches realms: its protocol, its client, its state and its runners."""
