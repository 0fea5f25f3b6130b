"""What training minimises; every loss is a value per case."""
