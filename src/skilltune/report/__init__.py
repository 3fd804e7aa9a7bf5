"""Views of a run for people: files, the card, the page, the terminal."""
