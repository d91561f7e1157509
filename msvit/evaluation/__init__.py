"""What a trained model does with images: means over a test set, and what it decides and answers for each image."""
