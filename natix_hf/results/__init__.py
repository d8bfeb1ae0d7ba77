"""What phases leave for each other, typed: each result is a frozen dataclass that reads and writes its own file."""
