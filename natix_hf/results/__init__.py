"""The typed results of the phases: each is a frozen dataclass that reads and writes its own file."""
