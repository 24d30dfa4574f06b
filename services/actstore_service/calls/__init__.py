"""The way of one call through the service, from its headers to its last message.

Every call passes the same steps, in this order (`pipeline`): metrics; who calls, by the headers alone; whether its
class of calls has room (`admission`); its one message (`opening`); then its answer, which is parsed, checked and made
in the room `answers`, and sent (`outbox`). No step waits in a thread for a client.
"""
