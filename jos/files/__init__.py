"""Files of organisations: posted whole or uploaded in parts, listed, downloaded, deleted. Start at service.py."""
