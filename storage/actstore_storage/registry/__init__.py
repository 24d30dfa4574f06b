"""What a store has beside its runs: the models and SAEs that its workers loaded, tokens' texts, archives of folders."""
