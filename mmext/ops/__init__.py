"""Functional operators: each file holds one public function and its pure-torch reference."""
