"""What machine this is: processor, memory, disk."""
