"""Forward passes for one question and their input: texts, batches of them, stored samples; and limits."""
