"""What a round costs, beside what a user would pick instead."""
