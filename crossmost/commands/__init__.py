"""The commands of `crossmost`: arguments only. Whatever is heavy is imported inside them."""
