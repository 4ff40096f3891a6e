"""The version of this distribution, which every request names."""

VERSION = "0.1.0"
