"""What families are built from: checked hyperparameters and tensors, and the parts that most models share."""
