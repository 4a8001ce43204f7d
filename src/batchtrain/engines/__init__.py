"""What carries pure functions over the blocks of a table: this process, or Ray."""
