"""`python -m flowcli`, which torchrun needs."""

from flowcli.cli import entry

if __name__ == "__main__":
    entry()
