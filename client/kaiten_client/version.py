"""The version of this distribution, which every request carries."""

VERSION = "0.1.0"
