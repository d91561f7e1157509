"""From a gate's logits to tokens: the decision, the embedding of the chosen tokens, and their layout in memory."""
