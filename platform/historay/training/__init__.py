"""Trains a network, plain torch inside, Ray around it, and evaluates what came out."""
