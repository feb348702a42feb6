"""What one training step is made of; the loop over them is `flowcli.engine`."""
