"""Forward passes for one question, and what they are run on: texts, batches of them, stored samples; and limits."""
