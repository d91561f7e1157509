"""From a gate's logits to tokens: the decision, the embedding of what it chose, and how the rows lie in memory."""
