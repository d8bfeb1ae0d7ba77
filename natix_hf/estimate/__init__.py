"""What a recipe costs in time, memory and disk, told before it runs."""
