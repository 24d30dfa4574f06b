"""What a store has besides runs: records of models and SAEs, token texts, archives of folders."""
