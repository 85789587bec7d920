"""What an application imports: builds commands, reads answers. Knows no socket, file or shard."""
