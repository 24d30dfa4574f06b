"""The contract between client, service and workers: messages, records, the codec between them, reasons of errors."""
