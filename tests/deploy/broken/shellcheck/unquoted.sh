#!/usr/bin/env bash
# A name with a space in it would be two.
name=$1
rm -r $name
