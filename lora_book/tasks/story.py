"""A story that no training of the book has seen: the loss on it says what fine-tuning forgot."""

STORY = (
    "There was once a miller who had three sons and a cat that could not sleep. Every night the cat walked along the "
    'river, and every night the old boat that lay there asked her the same thing. "Where are you going, little one?" '
    '"Nowhere," said the cat, "I am only counting the stars." One night there was no moon, and the river was so '
    'still that all the stars were in it twice. "Now you must count them again," said the boat. The cat laughed, and '
    "jumped in, and in the middle of the boat she found a small warm place that was just her size. In the morning the "
    "youngest son came down to the water to look for her. He found her fast asleep, and he was so glad that he sat "
    "down beside her, and did not go home until the sun was high. From that day on the three of them went out "
    "together whenever the wind was good."
)
