"""What is measured on predictions, and the reports made of it."""
