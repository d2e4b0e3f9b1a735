"""The proof that nothing leaves: the whole box in a network of its own, whose only wire leads to a counter.

Started by `appliance network prove` alone. It runs the box as a person would, through its commands, pages and /v1, and takes
part in none of its work.
"""
