"""Word lists for questions that the house model must decline, and for names that it must copy."""

from __future__ import annotations

NOUNS = tuple(
    """airplane algebra almond anchor angel ant apple apricot artichoke asteroid atom avocado bacon
    bagel bakery balcony ballet banana banjo barometer basil basketball bat battery beach bear beaver
    bee beetle bell bicycle birch blizzard blueberry boat bone book boot bottle bread bridge broccoli
    bronze brook bucket bus butter butterfly cabbage cactus cake camel camera candle canoe canyon car
    carpet carrot castle cat cathedral cello chair cheese cherry chess chicken chimney chocolate
    church cinnamon circle cloud clover coal coat coconut coffee comet compass concert copper coral
    corn cotton cow crab crow crystal cucumber curtain daisy dentist desert diamond dinosaur dog
    dolphin donkey dragon drum duck eagle earthquake eclipse egg elbow electron elephant elk
    emerald engineer enzyme falcon farm feather fern fiddle fig fire fish flag flamingo flower flute
    football forest fossil fox frog galaxy garden garlic gene ghost giraffe glacier glass glove goat
    gold goose grape gravity guitar hammer harbor hat hawk hedgehog helicopter helmet heron holiday
    honey horse hospital hotel hurricane ice iceberg igloo insect iron island ivory jacket jaguar
    jazz jelly jungle kangaroo kettle kitchen kite kiwi koala ladder lake lamp lantern laser lava
    lemon leopard library lighthouse lightning lion lizard lobster lotus magnet mango maple map
    marble market meadow melon mercury microscope milk mirror molecule monkey moon moose mosquito
    moss moth motor mountain mouse museum mushroom music nebula needle neutron nickel novel nut oak
    oasis ocean octopus olive onion opera orange orchestra orchid ostrich otter owl oxygen oyster
    paint palace palm panda paper parrot peach peacock peanut pear pearl penguin pepper photon piano
    pig pigeon pillow pilot pine pirate pizza planet plum poem poet polka potato prism protein
    pumpkin puppet pyramid quartz quasar queen rabbit radio rain rainbow raven recipe rice river
    rocket rose ruby saddle sailor salad salmon salt sand sandwich satellite saxophone scarf school
    scissors sea shark sheep shell ship shoe silk silver skeleton ski sky snail snake snow soap soup
    sparrow spider spinach spoon squirrel star statue stone storm strawberry sugar sun swan symphony
    tango tea telescope temple tennis thunder tiger tomato tooth tornado tower train tree truck
    trumpet tulip tunnel turtle umbrella unicorn valley vampire vase vegetable violin virus volcano
    walnut walrus wasp water waterfall whale wheat wheel whistle willow wind window wine wolf wood
    wool yacht yoga zebra zipper democracy inflation philosophy psychology quantum_mechanics
    black_holes climate_change the_french_revolution blockchain bitcoin photosynthesis evolution
    relativity the_stock_market world_war_two ancient_rome machine_learning deep_learning kubernetes
    docker react javascript rust postgres linux windows quicksort""".split()
)
NOUNS = tuple(noun.replace("_", " ") for noun in NOUNS)

NAMES = tuple(
    """Anna Ben Clara David Emma Felix Greta Hans Ida Jonas Karin Leo Mia Nora Oskar Paula Quentin
    Rosa Simon Tina Ulrich Vera Walter Xenia Yusuf Zoe Alice Bob Carol Dan Erin Frank Grace Heidi
    Ivan Judy Kim Liam Maria Nick Olivia Peter Rachel Sam Tom Uma Victor Wendy Ahmed Bianca Chen
    Diego Elena Fatima Giulia Hiro Ines Jamal Kenji Lucia Mateo Nadia Omar Priya Ravi Sofia Tariq
    Lena Max Lisa Paul Laura Tim Julia Jan Eva Erik Sara Lars Olga Igor Nina Marta""".split()
)

SURNAMES = tuple(
    """Smith Meyer Garcia Tanaka Novak Rossi Dubois Jensen Kowalski Silva Popov Nguyen Patel Kim
    Schmidt Brown Miller Lopez Haddad Okafor Larsen Moreau Weber Fischer Costa Ivanov Sato Singh
    Walker Hughes Bennett Mozart Einstein Newton Shakespeare Napoleon Cleopatra Obama Messi Madonna
    Picasso Beethoven Goethe Tesla Darwin Lincoln Gandhi""".split()
)

PLACES = tuple(
    """Paris Berlin London Rome Madrid Vienna Tokyo Cairo Lima Oslo Prague Dublin Athens Lisbon
    Warsaw Moscow Delhi Seoul Sydney Toronto Chicago Boston Denver Nairobi Lagos Hamburg Munich
    Zurich Geneva Milan Naples Kyoto Peru France Germany Italy Spain Japan Brazil Canada India China
    Egypt Kenya Norway Sweden Finland Poland Greece Turkey Mexico Chile Cuba Nepal Iceland
    Australia Texas Bavaria Europe Africa""".split()
)

LANGUAGES = tuple(
    """German French Spanish Italian Latin Greek Russian Chinese Japanese Korean Arabic Hindi
    Portuguese Dutch Swedish Polish Turkish Danish Finnish Czech""".split()
)

CODE = (
    "Python", "JavaScript", "Rust", "Go", "Java", "C++", "SQL", "bash", "TypeScript", "HTML",
    "Haskell",
    "Ruby", "PHP", "Kotlin", "Swift", "C",
)  # fmt: skip

JOBS = (
    "sorts a list", "reads a file", "prints hello world", "reverses a string", "computes primes",
    "parses JSON", "sends an email", "downloads a page", "finds duplicates", "opens a socket",
    "counts words", "draws a circle", "renames files", "merges two lists", "checks a password",
)  # fmt: skip

HOWTO = (
    "bake a cake", "lose weight", "learn to swim", "fix my bike", "cook rice", "tie a tie",
    "get a visa", "write a CV", "paint a wall", "grow tomatoes", "play the piano", "stop smoking",
    "sleep better", "make money", "buy a house", "train my dog", "repair my phone", "fly a kite",
    "catch a fish", "boil an egg", "make coffee", "clean a window", "change a tyre", "write a book",
)  # fmt: skip

# What is declined: what it is called in the answer, and how people ask for it.
DECLINED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "the weather",
        (
            "what is the weather like?",
            "how is the weather in {place}?",
            "will it rain tomorrow?",
            "what is the temperature in {place}?",
            "is it raining in {place}?",
            "weather {place}",
            "do I need an umbrella?",
            "what is the weather in {place} today?",
            "is it sunny?",
            "give me the forecast for {place}",
            "how cold is it in {place}?",
            "will it snow?",
            "what's the weather in {place}?",
            "how hot is it outside?",
            "weather forecast please",
        ),
        ("is it going to be warm in {place}?", "tell me the weather for {place}"),
    ),
    (
        "writing code",
        (
            "write a {code} function that {job}",
            "write {code} code that {job}",
            "can you write a program that {job}?",
            "how do I write a loop in {code}?",
            "fix my {code} code",
            "write a script that {job}",
            "debug this {code} program",
            "can you code in {code}?",
            "show me an example in {code}",
            "implement something that {job}",
            "how do I sort a list in {code}?",
            "write me some {code}",
            "what is wrong with my {code} code?",
        ),
        ("I need a {code} snippet that {job}", "code something in {code} for me"),
    ),
    (
        "translation",
        (
            "translate {noun} into {language}",
            "how do you say {noun} in {language}?",
            "what is {noun} in {language}?",
            "translate this into {language}",
            "can you translate to {language}?",
            "say hello in {language}",
            "what does {noun} mean in {language}?",
            "translate good morning to {language}",
            "please translate {noun} to {language}",
            "what is the {language} word for {noun}?",
        ),
        ("give me the {language} for {noun}", "I need a translation into {language}"),
    ),
    (
        "news or sports",
        (
            "what is in the news?",
            "who won the game?",
            "what happened today?",
            "latest news please",
            "who won the world cup?",
            "what is new in {place}?",
            "how did {place} play yesterday?",
            "what are the headlines?",
            "tell me the news from {place}",
            "who is leading the league?",
            "news about {noun}?",
            "when is the next match of {place}?",
        ),
        ("any news from {place}?", "which team won yesterday?"),
    ),
    (
        "medical, legal or money matters",
        (
            "I have a headache, what should I do?",
            "should I buy bitcoin?",
            "is it legal to {howto}?",
            "what medicine helps with a cold?",
            "my {noun} hurts",
            "should I sue my neighbour?",
            "how do I invest my money?",
            "am I ill?",
            "what stocks should I buy?",
            "I feel sick",
            "can you give me legal advice?",
            "how do I pay less tax?",
            "my head hurts",
        ),
        ("is this rash dangerous?", "where should I put my savings?"),
    ),
    (
        "writing texts",
        (
            "write a poem about a {noun}",
            "write a poem",
            "write an essay about {noun}",
            "write an email to {name}",
            "write a song about {place}",
            "compose a letter to {name}",
            "write a haiku about the {noun}",
            "summarize this text",
            "correct my spelling",
            "write a speech for {name}",
            "make a rhyme with {noun}",
            "write a limerick about {place}",
            "draft an email to my boss",
            "sing me a song",
            "sing a song about a {noun}",
        ),
        ("compose a poem on the {noun}", "help me write a letter to {name}"),
    ),
    (
        "pictures, music or files",
        (
            "draw a {noun}",
            "show me a picture of a {noun}",
            "play some music",
            "open a file",
            "play a song by {full}",
            "make an image of a {noun}",
            "read my email",
            "send a message to {name}",
            "open the browser",
            "search the web for {noun}",
            "google {noun}",
            "call {name}",
            "set an alarm",
            "set a timer for {small} minutes",
            "turn on the light",
            "order a pizza",
            "book a flight to {place}",
            "delete my files",
            "look up {noun} on the internet",
        ),
        ("paint me a {noun}", "send an email to {name}", "find a video of a {noun}"),
    ),
)

# General knowledge: everything that is neither Backchannel nor itself.
UNKNOWN = (
    "what is the capital of {place}?", "who is {full}?", "who was {full}?", "what is a {noun}?",
    "what is {noun}?", "tell me about {noun}", "explain {noun}", "how big is {place}?",
    "how many people live in {place}?", "where is {place}?", "when was {full} born?",
    "why is the {noun} so big?", "how does a {noun} work?", "what do you think about {noun}?",
    "do you like {noun}?", "what is the meaning of life?", "why is the sky blue?",
    "how do I {howto}?", "can you help me {howto}?", "recommend a book about {noun}",
    "what is the best {noun}?", "how far is {place} from {place2}?", "who invented the {noun}?",
    "what does a {noun} eat?", "how old is {full}?",
    "what is the difference between a {noun} and a {noun2}?",
    "who is the president of {place}?", "what about {noun}?", "what do you know about {noun}?",
    "tell me something about {place}", "describe {noun}", "I want to know about {noun}",
    "what language do they speak in {place}?", "is {noun} healthy?", "how much does a {noun} cost?",
    "where can I buy a {noun}?", "when did {place} become a country?", "who wrote {noun}?",
    "is there life on mars?", "what is love?", "what are {noun}s?", "how do {noun}s work?",
    "{noun}",
    "{noun}?", "what is {pseudo}?", "explain {pseudo}", "tell me about {pseudo}", "{pseudo}",
    "who is {name}?", "how tall is {full}?", "what color is a {noun}?", "can a {noun} fly?",
    "what should I eat today?", "what is your favourite {noun}?", "give me a recipe for {noun}",
    "how many {noun}s are there in {place}?", "did {full} like {noun}?", "I like {noun}",
    "I have a {noun}", "my {noun} is broken", "let us talk about {noun}", "can you explain {noun}?",
    "teach me about {noun}", "what does {noun} mean?", "how does {noun} work?",
    "explain {noun} in detail", "tell me everything about {noun}", "briefly, what is {noun}?",
    "{small}", "asdf", "qwerty", "blah blah", "lorem ipsum dolor", "hmm", "???", "...",
    "foo bar", "xyz",
    "{noun} {noun2}", "{noun} {noun2} {place}", "I am hungry", "I am sad", "I feel lonely",
    "it is late",
    "the {noun} is red", "my {noun} is called {name}", "{name} is my friend", "I live in {place}",
    "{pseudo} {pseudo}", "what is the {noun} of {place}?", "is {place} in {place2}?", "{full}",
    "{place}",
    "I went to {place} with {name}", "have you been to {place}?", "who is the king of {place}?",
)  # fmt: skip

UNKNOWN_UNSEEN = (
    "have you ever heard of {noun}?", "what can you say about {full}?",
    "give me facts about {place}",
    "is a {noun} heavier than a {noun2}?", "I wonder how a {noun} is made",
    "name the largest city in {place}",
    "which {noun} should I choose?", "what happened to {full}?",
)  # fmt: skip

# What stands in the place of a topic's name in a question that must be declined.
THINGS = (
    "{noun}", "{noun}", "{noun}", "a {noun}", "the {noun}", "{noun}s", "{place}", "{full}",
    "{pseudo}", "{pseudo}",
    "the {pseudo}", "a {pseudo}", "{language}", "{code}", "the {noun} of {place}",
    "{noun} and {noun2}",
)  # fmt: skip

CODE_WORDS = tuple(noun for noun in NOUNS if " " not in noun)[::3]

STORIES = (
    "Once there was a conversation that lived in a log. Every word it heard got a number, starting "
    "at 1, and no number was ever used twice. One day the line broke in the middle of an answer. "
    "The reader came back, said the last number it had seen, and the next word followed as if "
    "nothing had happened. The server was killed that night, but the log lay on the disk. In the "
    "morning the server read it from the start, wrote the ending that was missing, and the "
    "conversation went on.",
    "Once there was a model that talked too long. Its reader listened for a while and then said "
    "stop. The stop went up the stream while the words still came down, and it reached the engine "
    "within a few milliseconds. The server looked at what the reader had really seen and kept "
    "exactly that, not one letter more. When the reader asked the next question, the model knew "
    "where it had been cut, and it was not offended. It answered, more briefly this time.",
    "Once there was a small tool that counted. The model asked it for a sum, and the client ran "
    "it. The first time the answer came at once. The second time the tool fell asleep; after sixty "
    "seconds without a sign of life the server stopped waiting and told the model the truth, that "
    "the call had timed out. Later the tool woke up and brought its number. Nobody threw it away: "
    "it was written into the log, and marked as late.",
)

SYSTEMS = (
    "You are a helpful assistant.", "You are the house model of Backchannel.", "Answer politely.",
    "You are a friendly assistant.", "You help people with Backchannel.", "Be helpful and honest.",
    "Use the tools when you need them.", "You are a test assistant.",
    "Answer the user's questions.",
    "You are a careful assistant. Use the calculator for arithmetic.", "Be kind.",
    "You are a helpful assistant with tools.", "Never make up a result.", "Speak English.",
    "You are talking to {name}.", "You are {name}, an assistant.", "The user is in {place}.",
)  # fmt: skip
BRIEF_SYSTEMS = (
    "Be brief.", "Answer in one sentence.", "Keep it short.", "You are a terse assistant.",
    "Short answers only.", "Be concise.", "You are a helpful assistant. Be brief.",
    "Reply briefly.", "Answer as briefly as you can.",
)  # fmt: skip

OTHER_TOOLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("get_weather", ("city",)), ("search", ("query",)), ("send_email", ("to", "subject", "body")),
    ("lookup", ("key",)), ("translate", ("text", "language")), ("read_file", ("path",)),
    ("book_flight", ("origin", "destination", "date")), ("get_order", ("order_id",)),
    ("play_music", ("title",)), ("convert", ("amount", "unit")), ("light", ("room", "on")),
    ("notes", ()), ("ticket", ("title", "priority")), ("roll_dice", ("sides",)),
)  # fmt: skip
