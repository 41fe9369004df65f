"""What a picture is made of, drawn from a seed: hands, things, light, camera, and the labels."""
