"""What a run says to the world: its card, as Hugging Face and Croissant have it, and what is published of it."""
