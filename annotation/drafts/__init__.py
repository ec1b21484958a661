"""Draft captions, offered to people who then correct instead of writing."""
