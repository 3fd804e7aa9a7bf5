"""What a person sees of a run: files, cards, the terminal."""
