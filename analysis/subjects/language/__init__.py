"""What a language model knows: fact banks, models, and facts put into token ids."""
