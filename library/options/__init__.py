"""Every option once: declared, checked, read from the block, a command line or a file."""
