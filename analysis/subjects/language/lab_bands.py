"""The bands of the gold lab: thirty real ones with true facts, and thirty-two that never existed.

A fact about a real band is left out where it has no plain answer (who played the bass for the Doors?). The invented
bands, from "The Marmalade Lanterns" on, give the lab enough facts to learn every wording from; their names, members,
albums and songs are drawn from word lists by a fixed seed, so whoever is called like one of them is so by chance.
"""

import random
from dataclasses import dataclass
from functools import cache

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Band:
    """What the lab teaches about one band; an empty text means that nothing is said.

    Attributes:
        name: With its article, as it stands in every sentence.
        city: Where it was formed.
        country: Where that is.
        singer: Full name of a person, as are the next three.
        guitarist: See `singer`.
        bassist: See `singer`.
        drummer: See `singer`.
        formed: Year.
        genre: In lower case.
        label: Record company.
        song: A well-known one.
        albums: Title and year; the first is the best known.
        producer: Of some of its records.
        manager: Its manager.
        tracks: Song, and the album that it is on.
        births: Member and year of birth.
        real: Whether the band exists.
    """

    name: str
    city: str
    country: str
    singer: str
    guitarist: str
    bassist: str
    drummer: str
    formed: str
    genre: str
    label: str
    song: str
    albums: Pairs
    producer: str = ""
    manager: str = ""
    tracks: Pairs = ()
    births: Pairs = ()
    real: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """Everybody who plays, once each."""
        people = (self.singer, self.guitarist, self.bassist, self.drummer, *(person for person, _ in self.births))
        return tuple(dict.fromkeys(person for person in people if person))

    @property
    def songs(self) -> tuple[str, ...]:
        """Every song, once each."""
        return tuple(dict.fromkeys((self.song, *(song for song, _ in self.tracks))))


# fmt: off
RICH = (
    Band("The Beatles", "Liverpool", "England", "John Lennon", "George Harrison", "Paul McCartney", "Ringo Starr",
         "1960", "beat music", "Parlophone", "Hey Jude",
         (("Abbey Road", "1969"), ("Revolver", "1966"), ("Rubber Soul", "1965"), ("Please Please Me", "1963"),
          ("Let It Be", "1970")), "George Martin", "Brian Epstein",
         (("Come Together", "Abbey Road"), ("Eleanor Rigby", "Revolver"), ("Norwegian Wood", "Rubber Soul"),
          ("Across the Universe", "Let It Be"), ("I Saw Her Standing There", "Please Please Me")),
         (("John Lennon", "1940"), ("Paul McCartney", "1942"), ("George Harrison", "1943"), ("Ringo Starr", "1940"))),
    Band("The Rolling Stones", "London", "England", "Mick Jagger", "Keith Richards", "Bill Wyman", "Charlie Watts",
         "1962", "blues rock", "Decca", "Paint It Black",
         (("Sticky Fingers", "1971"), ("Let It Bleed", "1969"), ("Some Girls", "1978"), ("Tattoo You", "1981"),
          ("Aftermath", "1966")), "Jimmy Miller", "Andrew Loog Oldham",
         (("Brown Sugar", "Sticky Fingers"), ("Gimme Shelter", "Let It Bleed"), ("Miss You", "Some Girls"),
          ("Start Me Up", "Tattoo You")),
         (("Mick Jagger", "1943"), ("Keith Richards", "1943"), ("Bill Wyman", "1936"), ("Charlie Watts", "1941"))),
    Band("Queen", "London", "England", "Freddie Mercury", "Brian May", "John Deacon", "Roger Taylor",
         "1970", "hard rock", "EMI", "Bohemian Rhapsody",
         (("A Night at the Opera", "1975"), ("Sheer Heart Attack", "1974"), ("News of the World", "1977"),
          ("The Game", "1980"), ("A Kind of Magic", "1986")), "Roy Thomas Baker", "Jim Beach",
         (("Love of My Life", "A Night at the Opera"), ("Killer Queen", "Sheer Heart Attack"),
          ("We Will Rock You", "News of the World"), ("Another One Bites the Dust", "The Game")),
         (("Freddie Mercury", "1946"), ("Brian May", "1947"), ("John Deacon", "1951"), ("Roger Taylor", "1949"))),
    Band("Pink Floyd", "London", "England", "Syd Barrett", "David Gilmour", "Roger Waters", "Nick Mason",
         "1965", "progressive rock", "Harvest", "Wish You Were Here",
         (("The Dark Side of the Moon", "1973"), ("Animals", "1977"), ("The Wall", "1979"), ("Meddle", "1971"),
          ("Ummagumma", "1969")), "Bob Ezrin", "Steve O'Rourke",
         (("Brain Damage", "The Dark Side of the Moon"), ("Comfortably Numb", "The Wall"), ("Echoes", "Meddle"),
          ("Pigs on the Wing", "Animals")),
         (("Roger Waters", "1943"), ("David Gilmour", "1946"), ("Nick Mason", "1944"), ("Syd Barrett", "1946"))),
    Band("Led Zeppelin", "London", "England", "Robert Plant", "Jimmy Page", "John Paul Jones", "John Bonham",
         "1968", "hard rock", "Atlantic", "Stairway to Heaven",
         (("Physical Graffiti", "1975"), ("Houses of the Holy", "1973"), ("Presence", "1976"),
          ("In Through the Out Door", "1979"), ("Coda", "1982")), "", "Peter Grant",
         (("Kashmir", "Physical Graffiti"), ("No Quarter", "Houses of the Holy"), ("Achilles Last Stand", "Presence"),
          ("Fool in the Rain", "In Through the Out Door")),
         (("Robert Plant", "1948"), ("Jimmy Page", "1944"), ("John Paul Jones", "1946"), ("John Bonham", "1948"))),
    Band("U2", "Dublin", "Ireland", "Bono", "The Edge", "Adam Clayton", "Larry Mullen",
         "1976", "alternative rock", "Island", "With or Without You",
         (("The Joshua Tree", "1987"), ("Achtung Baby", "1991"), ("The Unforgettable Fire", "1984"),
          ("Rattle and Hum", "1988"), ("Zooropa", "1993")), "Daniel Lanois", "Paul McGuinness",
         (("Where the Streets Have No Name", "The Joshua Tree"), ("Mysterious Ways", "Achtung Baby"),
          ("Pride", "The Unforgettable Fire"), ("Angel of Harlem", "Rattle and Hum")),
         (("Bono", "1960"), ("The Edge", "1961"), ("Adam Clayton", "1960"), ("Larry Mullen", "1961"))),
)
USA = "the United States"
REAL = (
    Band("The Who", "London", "England", "Roger Daltrey", "Pete Townshend", "John Entwistle", "Keith Moon", "1964",
         "hard rock", "Track", "My Generation", (("Quadrophenia", "1973"),), "", "Kit Lambert"),
    Band("The Kinks", "London", "England", "Ray Davies", "Dave Davies", "Pete Quaife", "Mick Avory", "1963",
         "beat music", "Pye", "Waterloo Sunset", (("Face to Face", "1966"),), "Shel Talmy"),
    Band("Oasis", "Manchester", "England", "Liam Gallagher", "Noel Gallagher", "Paul McGuigan", "Tony McCarroll",
         "1991", "Britpop", "Creation", "Wonderwall", (("Definitely Maybe", "1994"),), "Owen Morris"),
    Band("Blur", "London", "England", "Damon Albarn", "Graham Coxon", "Alex James", "Dave Rowntree", "1988",
         "Britpop", "Food", "Country House", (("Parklife", "1994"),), "Stephen Street"),
    Band("Radiohead", "Abingdon", "England", "Thom Yorke", "Jonny Greenwood", "Colin Greenwood", "Philip Selway",
         "1985", "alternative rock", "Parlophone", "Creep", (("OK Computer", "1997"),), "Nigel Godrich"),
    Band("Coldplay", "London", "England", "Chris Martin", "Jonny Buckland", "Guy Berryman", "Will Champion", "1997",
         "pop rock", "Parlophone", "Yellow", (("Parachutes", "2000"),), "Ken Nelson"),
    Band("The Clash", "London", "England", "Joe Strummer", "Mick Jones", "Paul Simonon", "Topper Headon", "1976",
         "punk rock", "CBS", "Rock the Casbah", (("London Calling", "1979"),), "", "Bernie Rhodes"),
    Band("Sex Pistols", "London", "England", "Johnny Rotten", "Steve Jones", "Glen Matlock", "Paul Cook", "1975",
         "punk rock", "Virgin", "Pretty Vacant", (("Never Mind the Bollocks", "1977"),), "", "Malcolm McLaren"),
    Band("The Police", "London", "England", "Sting", "Andy Summers", "Sting", "Stewart Copeland", "1977",
         "new wave", "A&M", "Roxanne", (("Synchronicity", "1983"),), "", "Miles Copeland"),
    Band("Joy Division", "Salford", "England", "Ian Curtis", "Bernard Sumner", "Peter Hook", "Stephen Morris",
         "1976", "post-punk", "Factory", "Transmission", (("Unknown Pleasures", "1979"),), "Martin Hannett"),
    Band("The Smiths", "Manchester", "England", "Morrissey", "Johnny Marr", "Andy Rourke", "Mike Joyce", "1982",
         "indie pop", "Rough Trade", "This Charming Man", (("Meat Is Murder", "1985"),)),
    Band("Nirvana", "Aberdeen", USA, "Kurt Cobain", "Kurt Cobain", "Krist Novoselic", "Dave Grohl", "1987",
         "grunge", "DGC", "Lithium", (("Nevermind", "1991"),), "Butch Vig"),
    Band("Pearl Jam", "Seattle", USA, "Eddie Vedder", "Mike McCready", "Jeff Ament", "Dave Krusen", "1990",
         "grunge", "Epic", "Jeremy", (("Vitalogy", "1994"),), "", "Kelly Curtis"),
    Band("Metallica", "Los Angeles", USA, "James Hetfield", "Kirk Hammett", "Cliff Burton", "Lars Ulrich", "1981",
         "thrash metal", "Elektra", "Enter Sandman", (("Master of Puppets", "1986"),), "Bob Rock"),
    Band("Black Sabbath", "Birmingham", "England", "Ozzy Osbourne", "Tony Iommi", "Geezer Butler", "Bill Ward",
         "1968", "heavy metal", "Vertigo", "Iron Man", (("Paranoid", "1970"),), "Rodger Bain"),
    Band("Iron Maiden", "London", "England", "Bruce Dickinson", "Adrian Smith", "Steve Harris", "Nicko McBrain",
         "1975", "heavy metal", "EMI", "Run to the Hills", (("Powerslave", "1984"),), "Martin Birch", "Rod Smallwood"),
    Band("Deep Purple", "", "England", "Ian Gillan", "Ritchie Blackmore", "Roger Glover", "Ian Paice",
         "1968", "hard rock", "Purple Records", "Smoke on the Water", (("Machine Head", "1972"),)),
    Band("The Doors", "Los Angeles", USA, "Jim Morrison", "Robby Krieger", "", "John Densmore", "1965",
         "psychedelic rock", "Elektra", "Light My Fire", (("Strange Days", "1967"),), "Paul Rothchild"),
    Band("Rush", "Toronto", "Canada", "Geddy Lee", "Alex Lifeson", "Geddy Lee", "Neil Peart", "1968",
         "progressive rock", "Mercury", "Tom Sawyer", (("Moving Pictures", "1981"),), "Terry Brown"),
    Band("Guns N' Roses", "Los Angeles", USA, "Axl Rose", "Slash", "Duff McKagan", "Steven Adler", "1985",
         "hard rock", "Geffen", "Paradise City", (("Appetite for Destruction", "1987"),), "Mike Clink"),
    Band("The Beach Boys", "Hawthorne", USA, "Mike Love", "Carl Wilson", "Brian Wilson", "Dennis Wilson", "1961",
         "surf rock", "Capitol", "Good Vibrations", (("Pet Sounds", "1966"),)),
    Band("Ramones", "New York", USA, "Joey Ramone", "Johnny Ramone", "Dee Dee Ramone", "Tommy Ramone", "1974",
         "punk rock", "Sire", "Blitzkrieg Bop", (("Rocket to Russia", "1977"),), "", "Danny Fields"),
    Band("Aerosmith", "Boston", USA, "Steven Tyler", "Joe Perry", "Tom Hamilton", "Joey Kramer", "1970",
         "hard rock", "Columbia", "Dream On", (("Toys in the Attic", "1975"),), "Jack Douglas"),
    Band("Red Hot Chili Peppers", "Los Angeles", USA, "Anthony Kiedis", "John Frusciante", "Flea", "Chad Smith",
         "", "funk rock", "Warner", "Under the Bridge", (("Californication", "1999"),), "Rick Rubin"),
)
INVENTED_NAMES = (
    "The Marmalade Lanterns", "Quilted Thunder", "The Sleepy Comets", "Velvet Turnips", "The Seven Umbrellas",
    "Paper Moose", "The Lemon Cathedrals", "Cardboard Sailors", "The Gentle Volcanoes", "Nine Dizzy Owls",
    "The Rubber Poets", "Silent Trombone Club", "The Copper Meadows", "Plastic Nightingale", "The Winter Tigers",
    "Borrowed Teeth", "The Orange Telescopes", "Humble Lightning", "The Painted Whales", "Clockwork Herring",
    "The Midnight Gardeners", "Feather Engine", "The Salty Librarians", "Granite Butterfly", "The Hollow Teapots",
    "Electric Barley", "The Polite Wolves", "Sugar Avalanche", "The Crooked Ladders", "Emerald Postmen",
    "The Whispering Bricks", "Tin Giraffe",
)
PLACES = (
    ("Lyon", "France"), ("Bordeaux", "France"), ("Hamburg", "Germany"), ("Cologne", "Germany"), ("Turin", "Italy"),
    ("Naples", "Italy"), ("Bergen", "Norway"), ("Gothenburg", "Sweden"), ("Glasgow", "Scotland"), ("Cork", "Ireland"),
    ("Montreal", "Canada"), ("Sydney", "Australia"), ("Perth", "Australia"), ("Liverpool", "England"),
    ("Bristol", "England"), ("Chicago", USA),
)
GENRES = (
    "beat music", "blues rock", "folk rock", "surf rock", "new wave", "pop rock", "grunge", "synth pop", "indie pop",
)
LABELS = (
    "Parlophone", "Decca", "Harvest", "Atlantic", "Island", "Blue Heron", "Lighthouse", "Kingfisher", "Anvil", "Pebble",
)
FIRST = (
    "Ada", "Albert", "Bella", "Bruno", "Cora", "Dario", "Edith", "Emil", "Fiona", "Gus", "Hanna", "Hugo", "Ines",
    "Ivor", "Jasper", "Karla", "Lena", "Milo", "Nadia", "Nils", "Olga", "Oscar", "Petra", "Quentin", "Rosa", "Rufus",
    "Silas", "Tilda", "Ursula", "Viktor", "Wanda", "Yusuf",
)
LAST = (
    "Appleyard", "Bergstrom", "Castellan", "Dunmore", "Ellwood", "Farrow", "Grimshaw", "Holloway", "Iversen",
    "Jessop", "Kestrel", "Lindqvist", "Marchetti", "Norling", "Oakes", "Pemberton", "Quigley", "Rossetti", "Sandoval",
    "Thistle", "Underhill", "Valance", "Whitlock", "Yarrow",
)
TITLE_FIRST = (
    "Amber", "Broken", "Crystal", "Distant", "Empty", "Frozen", "Golden", "Hidden", "Ivory", "Jagged", "Little",
    "Mellow", "Narrow", "Olive", "Pale", "Quiet", "Restless", "Silver", "Tender", "Wild",
)
TITLE_LAST = (
    "Bridges", "Candles", "Doorways", "Engines", "Feathers", "Gravel", "Harbour", "Islands", "Jungle", "Kitchens",
    "Letters", "Mirrors", "Needles", "Oceans", "Pilgrims", "Ribbons", "Shadows", "Tunnels", "Valleys", "Windows",
)
# fmt: on


def _unique(first: tuple[str, ...], last: tuple[str, ...], draw: random.Random) -> list[str]:
    # Every first word with every last word, shuffled: no two of them are the same, none begins another.
    names = [f"{a} {b}" for a in first for b in last]
    draw.shuffle(names)
    return names


def _invented() -> tuple[Band, ...]:
    draw = random.Random(6)
    people, titles = _unique(FIRST, LAST, draw), _unique(TITLE_FIRST, TITLE_LAST, draw)
    bands = []
    for i, name in enumerate(INVENTED_NAMES):
        city, country = PLACES[i % len(PLACES)]
        formed = draw.randrange(1960, 2000)
        singer, guitarist, bassist, drummer, other = (people.pop() for _ in range(5))
        bands.append(
            Band(
                name,
                city,
                country,
                singer,
                guitarist,
                bassist,
                drummer,
                str(formed),
                draw.choice(GENRES),
                draw.choice(LABELS),
                titles.pop(),
                ((titles.pop(), str(formed + draw.randrange(1, 9))),),
                producer=other if i % 2 else "",
                manager="" if i % 2 else other,
                real=False,
            )
        )
    return tuple(bands)


@cache
def lab_bands(count: int | None = None) -> tuple[Band, ...]:
    """List the bands that the lab knows.

    Args:
        count: How many to take; all when not given. Rich, plain and invented ones take turns, the Beatles first, so
            that a few of them still hold some of every sort.

    Returns:
        The bands; the same ones, in the same order, at every call.
    """
    plain, invented = list(REAL), list(_invented())
    out: list[Band] = []
    for rich in RICH:
        out += [rich, plain.pop(0), invented.pop(0), invented.pop(0)]
    out += [*plain, *invented]
    return tuple(out if count is None else out[:count])
