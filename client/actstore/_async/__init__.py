"""The lab for asyncio: the same questions as `actstore.Lab`, awaited, made of the same methods."""
