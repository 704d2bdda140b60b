"""What the compiler and the runtime share: block formats, the plan format, and how a plan is bound to a budget."""
