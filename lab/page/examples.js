// Texts to train on, written for this page, each with a prompt after which its style shows.
export const EXAMPLES = {
  ship: {
    title: "a pirate's log",
    prompt: "Ninth day. Arr,",
    text: `First day. Arr, the wind be fair and the crew be merry. We left the harbour at the turn of the tide, and not a soul waved us farewell but the cook's old mother. I counted the barrels: nine of water, six of biscuit, and one of pickled onions that no hand will own to.

Second day. Arr, the wind be gone. The sails hang like wet washing. The parrot says a storm be coming, but the parrot said so yesterday, and the day before. I gave him half a biscuit to hold his tongue.

Third day. Arr, a storm! The parrot be proud and will not stop talking. We lost a lantern, two hats and the smaller anchor. Young Tom was sick in the captain's boots, and the captain be me.

Fourth day. Arr, the sea be flat as a plate. We dried our stockings on the rigging. A whale came up beside us and looked at the stockings for a long while, and went down again without a word.

Fifth day. Arr, land! The lookout swore to it. It was a cloud. I took away his pudding, and he swore at that as well.

Sixth day. Arr, land, and no cloud this time. An island with one hill, three palms and a goat. We have a map with a cross on it, and the cross be under the goat. The goat will not move for biscuit, nor for song, nor for the pickled onions.

Seventh day. Arr, the goat ate the map. We dug where we remembered the cross to be, and found a chest. In the chest was a smaller chest, and in the smaller chest a letter: "Arr, too late. Yours truly, the goat." The crew be laughing still. I signed the goat on as second mate.

Eighth day. Arr, we be homeward bound. The wind be fair again, the crew be merry, and the second mate has eaten the log of the ninth day, so I must end here.
`,
  },
  weather: {
    title: "weather for giants",
    prompt: "Weather for giants, tomorrow.",
    text: `Weather for giants, Monday. Clouds at knee height until noon, then around the waist. Giants who go barefoot should look out for church towers. Rain in the valleys: please do not step into the lakes, they are full enough already.

Weather for giants, Tuesday. Sunny above the clouds, and so for your heads. Feet may get wet. A flock of geese will pass at about the height of your ears between nine and ten. Close your mouths.

Weather for giants, Wednesday. Strong wind from the west. Hold on to your hats; the last one that was lost covered a village for two days, and the people there took it for winter. Snow on the eyebrows in the evening.

Weather for giants, Thursday. Fog. If you cannot see your feet, stand still. The railway asks us to say again that the small bright snake in the fog is a train, and not food.

Weather for giants, Friday. Warm and calm. A good day to hang the washing over the mountains. Thunder in the afternoon is only Uncle Bor, who sleeps on his back. Turn him gently.

Weather for giants, Saturday. Clear until evening. The moon will rise between the two hills and will come very near. It is not a cheese. This has been tried.

Weather for giants, Sunday. Light frost on the shoulders. The small people have a festival and will send up coloured sparks to the height of your chins. Do not sneeze. Tickling in the nose goes away if you think of something sad, such as the sea that was there before Bor sat down in it.

Weather for giants, the week ahead. Clouds at knee height again. Some sun, some hail, and now and then a hot air balloon. Giants are asked to be kind to balloons: the small people in them have come a long way up to look at you, and they are waving.
`,
  },
  recipes: {
    title: "a troll's cookbook",
    prompt: "Snail pie. Take",
    text: `Stone soup for two trolls. Take one flat stone from the river, not too young. Wash it, or do not. Boil it from full moon to half moon. Add a boot for flavour, the left one is best. Stir with a tree. Serve hot, and do not chew: the stone is needed again next week.

Moss salad. Take the moss from the north side of anything. Shake out the beetles and keep them for later. Pour on swamp water, the green kind, and a spoon of rust. Mix it with both hands. Trolls who are on a diet may leave out the rust.

Pancakes of mud. Take mud after three days of rain, when it is ripe. Beat it until it bubbles. Throw it at a hot rock, and stand back. When the edges curl, turn the rock over. Serve with snails, who will come by themselves if you wait.

Grandmother's bone tea. Take a bone that nobody is using. Ask first. Grind it between two quiet hills. Pour on hot water from the geyser and let it stand for a winter. It is good against coughs, sunlight and visitors.

Bridge cake. Take a whole bridge, with the moss, and without the traveller. Travellers are salty and they complain. Break it into small pieces. Put in forty eggs of any bird, and the nests. Bake it in a volcano of middle heat until the goats stop laughing.

Beetle biscuits. Take the beetles from the moss salad. Count them: if there are fewer than a thousand, eat them now and begin again. Roll them in ashes and dry them on the roof. Good for long walks, as most of them can walk beside you.

Night jam. Take the dark from under a big fir tree, two buckets. Boil it with blackberries, because of the colour. Fill it in jars before sunrise. Close the jars well: a jar that is opened at noon makes a small night in the kitchen, and then nobody finds the spoons.
`,
  },
};
