"""Public English sentences, written for this project: what the constants of the text encoder are computed from.

Opinions for and against, about many kinds of things, and plain statements. No sentence comes from a data set; none was
chosen or changed by its effect on one. Templates and word lists add variety, drawn from a fixed seed.
"""

from __future__ import annotations

import numpy as np

FOR = """
I would happily watch it again tomorrow.
The two leads carry every scene with warmth and wit.
A moving story, beautifully told, with an ending that stayed with me for days.
I laughed out loud more often than I can count.
One of the finest performances I have seen in years.
The photography alone is worth the ticket.
The script is sharp, the pace never drops and the cast is a joy.
My children asked to see it twice in one weekend.
It surprised me at every turn, and I left the cinema smiling.
The director knows exactly what she is doing.
A small film with a big heart.
The songs are catchy and the dancing is first class.
I did not want it to end.
It kept me guessing until the last minute.
A classic that has lost none of its charm.
The dialogue feels real and the humour is gentle.
The soup was rich and full of flavour.
They bake their own bread and you can taste it.
Our table was ready on time and the waiter could not have been kinder.
The fish was cooked exactly as I asked.
Huge portions, fair prices and a cosy room.
Easily the best curry in this part of town.
The staff remembered our names on the second visit.
We celebrated a birthday there and they spoiled us.
The dessert was heavenly.
Crisp salad, tender lamb, a lovely glass of wine: what more could you ask for?
The coffee is strong and the cakes are homemade.
Lunch came quickly and was still hot.
I dream about those dumplings.
The owner came over to make sure that we were happy.
Everything on the menu is tempting, and everything we tried was delicious.
A hidden gem with a beautiful garden.
The battery easily lasts two days.
Setup took five minutes and it has worked flawlessly ever since.
The sound is crystal clear, even in a noisy street.
It fits my ear perfectly and I forget that I am wearing it.
The picture is bright and sharp.
It feels sturdy and well made.
A bargain: it does everything that models at twice the price can do.
It survived three drops onto the floor without a scratch.
My hands no longer hurt after a day of typing.
The pairing is instant and it never loses the connection.
It charges in less than an hour.
Support answered within minutes and sent a replacement at once.
The instructions are clear and all the parts fit.
It arrived two days early and was carefully packed.
This is my third one, and I keep buying them as presents.
Light, quiet and fast: I could not ask for more.
The seat is comfortable even on long trips.
Our room was spotless, with a view of the lake.
The bed was so comfortable that I slept like a baby.
The guide was funny and knew everything about the town.
I finished the book in one night because I could not put it down.
The author writes with great feeling.
This album gets better every time I hear it.
The jacket is warm, soft and true to size.
The new version is faster and much easier to use.
The nurse was gentle and took her time to explain everything.
My skin feels smoother after only a week.
He teaches with patience and makes hard things simple.
The course was worth every hour that I spent on it.
The mechanic fixed it in an hour and charged less than he had said.
I am thrilled with this purchase.
If you are in doubt, go for it.
I give it full marks.
It did exactly what was promised.
Now I use it every single day.
I have already told all my friends about it.
You get far more than you pay for.
It made my life so much easier.
I am impressed by how well it is designed.
No complaints whatsoever.
I never had a single problem with it.
It could not be simpler to use.
There is nothing that I would change.
Not once did it let me down.
You cannot go wrong with this one.
I had low hopes, but it turned out to be great.
I was sceptical at first, and now I am a fan.
It is hard to find fault with it.
A pleasure from start to finish.
Well done to the whole team.
What a treat!
Wow, just wow.
Pure joy.
Ten out of ten.
Money well spent.
We will certainly return.
They really care about their guests.
It looks elegant on my desk.
"""

AGAINST = """
I walked out after half an hour.
The story goes nowhere and takes forever to get there.
Wooden acting, a silly plot and jokes that fall flat.
I have seen school plays with better acting.
The ending makes no sense and ruins what little was there.
Two hours of my life that I will never get back.
The characters are so thin that I did not care what happened to any of them.
The effects look as if they were made on a home computer.
It is loud, long and empty.
The script is full of holes and clichés.
The sequel has none of what made the first one good.
I kept looking at my watch.
Not funny, not scary, not interesting.
Even the music got on my nerves.
A great cast, completely wasted.
The camera shakes so much that I felt sick.
The soup was cold and tasted of nothing.
We waited an hour for a dry piece of chicken.
The waiter was rude and forgot half of our order.
The meat was tough and swimming in grease.
Tiny portions at ridiculous prices.
I found a hair in my salad.
I was ill the whole night after eating there.
The tables were sticky and the floor was filthy.
The rice was burnt on the outside and raw inside.
They charged us for drinks that we never had.
The coffee tastes like dishwater.
Nobody came to take our order, so we left.
The vegetables came straight from a tin.
The music was so loud that we could not talk.
The manager just shrugged when we complained.
I would rather go hungry than eat there again.
The battery is dead after two hours.
It stopped charging in the second week.
The sound crackles and cuts out all the time.
It falls out of my ear whenever I move my head.
The screen was scratched when I opened the box.
It feels cheap and flimsy.
The buttons stick and the cover does not close.
The plug broke off in my hand.
It drops the connection every few minutes.
The instructions are useless and two screws were missing.
It gets so hot that I am afraid to touch it.
Support never answered any of my messages.
They sent the wrong colour and refused to take it back.
I returned it the next day.
It is junk, plain and simple.
A complete rip-off.
The seat hurts after ten minutes.
The room smelled of smoke and the sheets had stains.
The walls are so thin that I did not sleep at all.
The guide was bored and could not answer a single question.
I gave up on the book after fifty pages.
The writing is clumsy and the hero is unbearable.
Every song on this album sounds the same.
The jacket fell apart in the first wash.
Since the update it crashes whenever I open it.
The nurse was impatient and hurt me.
It gave me a rash.
He mumbles and never explains anything.
The course taught me nothing new.
The mechanic overcharged me and the noise is still there.
I am sorry that I ever bought it.
Stay away from this one.
I would give it no stars if I could.
It does nothing of what was promised.
It has been lying in a drawer ever since.
I have warned all my friends about it.
You get what you pay for, and here that is very little.
It made everything more difficult.
Whoever designed this has never used it.
Nothing but problems.
It never worked, not even on the first day.
It could hardly be more complicated to use.
There is nothing about it that I like.
It let me down when I needed it most.
You can find a better one anywhere.
I had high hopes and was badly let down.
I wanted to like it, but it is just not good.
It is hard to say anything kind about it.
A torment from start to finish.
Shame on the people who sell this.
What a mess!
Yuck.
Pure misery.
Zero out of ten.
Money thrown away.
We will certainly not return.
They do not care about their guests at all.
It looks nothing like the picture.
"""

PLAIN = """
The meeting starts at nine and ends before lunch.
It rained all day in the mountains.
The train to the coast leaves every hour.
Prices rose by two percent last year.
The committee will vote on the proposal next month.
Water boils at one hundred degrees.
The patient was given a new medicine.
Two teams met in the final.
The river flows through four countries.
Scientists measured the distance to the star.
He plays the piano and the violin.
Turn left at the second corner.
The garden has roses and an old apple tree.
The company employs three hundred people.
Bread is made of flour, water and salt.
Their flight was late by two hours.
The court heard the case on Friday.
She wrote a letter to her uncle.
Birds fly south in the autumn.
The museum opens at ten and closes at six.
Children learn to read at school.
The bridge was built by the Romans.
The bank approved the loan.
How do I change my password?
Where is the nearest pharmacy?
The software runs on most computers.
Add the numbers and divide by two.
The ship reached the harbour before the storm.
Elections take place every four years.
The doctor told him to rest.
Snow covered the village.
Copper conducts electricity.
The library lends films and music too.
A dog barked behind the fence.
Please send me the invoice by Monday.
The parcel weighs four kilos.
The film was shot in Iceland.
The restaurant opened in 1998.
My phone is two years old.
We changed trains in the capital.
The blood test showed a raised value.
The engine has four cylinders.
Our shop is closed on Sundays.
The lecture is about the history of trade.
The cable is two metres long.
He ordered a pizza and a glass of water.
The book has twelve chapters.
She works in the accounts department.
"""

THINGS = {
    "film": "movie film plot ending script cast acting director soundtrack camera scene story "
    "documentary sequel comedy drama",
    "food": "food meal pizza soup salad steak burger coffee dessert breakfast sauce bread chicken "
    "fish rice menu sandwich",
    "place": "restaurant place cafe bar hotel room kitchen patio store shop market museum park beach station office",
    "staff": "waiter waitress staff manager server chef owner service cashier bartender clerk "
    "guide driver teacher doctor",
    "device": "phone headset charger battery case screen camera keyboard speaker cable earpiece laptop "
    "tablet watch printer",
    "goods": "jacket shirt shoe bag chair table lamp bed mattress knife pan toy bicycle car engine book "
    "novel album song",
    "thing": "product item device unit design quality price sound volume size package warranty website app game update",
}
GOOD = """good great excellent wonderful amazing fantastic nice lovely perfect delicious beautiful comfortable reliable
impressive pleasant superb brilliant friendly fresh solid enjoyable outstanding charming clever awesome adorable
appealing attentive attractive authentic balanced bright captivating clean clear compelling cosy courteous creative
crisp crunchy dazzling decent delightful durable easy effective efficient elegant engaging entertaining exceptional
exciting exquisite fabulous fair fast fine first-class flawless fun funny generous gentle genuine gorgeous graceful
gripping handy happy helpful heartwarming honest hilarious ideal imaginative incredible intelligent inventive juicy
likeable magnificent marvellous masterful memorable mouth-watering moving neat original phenomenal polite powerful
precise priceless quick quiet refreshing rich satisfying sensible sharp sleek smart smooth spectacular splendid
spotless stunning sturdy stylish subtle sweet tasteful tasty tender terrific thoughtful thrilling top-notch touching
unforgettable useful valuable vivid warm welcoming well-made witty worthwhile"""
BAD = """bad terrible awful horrible poor disappointing boring bland rude slow cheap ugly useless broken dirty cold
overpriced annoying weak dull stupid unreliable uncomfortable mediocre lousy abysmal absurd amateurish appalling
atrocious awkward bitter brittle careless clumsy complicated confusing crappy crude dated defective depressing
dishonest disgusting disorganised dreadful dreary dry embarrassing empty faulty filthy flat flawed flimsy foolish
forced frustrating garbled gross greasy half-baked hideous hollow hopeless horrid idiotic impractical inaccurate
incoherent incompetent inconsistent inedible inferior insulting irritating laughable lazy leaky lifeless limp loud
meaningless messy miserable misleading monotonous mushy nasty noisy obnoxious offensive painful pathetic pointless
predictable pretentious questionable ridiculous rotten rough rubbery scratchy second-rate senseless shabby shallow
shoddy sickening silly skimpy sloppy smelly soggy soulless stale sticky tacky tasteless tedious tiresome tough
trashy ugly unacceptable unbearable uncaring undercooked unfriendly unfunny unhelpful uninspired unpleasant
unprofessional unwatchable vile vulgar watery worn worthless wretched"""
VERY = "very really so quite extremely rather pretty incredibly totally absolutely truly surprisingly simply remarkably"
LIKE = "love like enjoy recommend adore appreciate admire praise treasure cherish"
DISLIKE = "hate dislike regret avoid resent despise detest loathe"
OPINIONS = """The {t} was {a}.|The {t} is {v} {a}.|This is a {a} {t}.|What a {a} {t}!|I {w} this {t}.|Simply {a}.
I {w} the {t} and the {t2}.|The {t} and the {t2} were both {a}.|I thought the {t} was {v} {a}.
Overall, a {a} {t}.|It was {v} {a} and {a2}.|We found the {t} {a} and {a2}.|I would call it a {v} {a} {t}.
I have to say the {t} is {a}.|After two weeks the {t} is still {a}.|For the price, the {t} is {a}.
The {t} is {a} and the {t2} is {a2}.|Such a {a}, {a2} {t}.|{a} {t}, {a2} {t2}.
Not only is the {t} {a}, it is also {a2}.|Everything about the {t} was {a}.|The {t} turned out to be {a}.
My wife thinks the {t} is {v} {a}.|The {t} looks {a}.|It has a {a} {t}.
The most {a} {t} I have ever come across.|I was struck by how {a} the {t} was.|A {a} {t} with a {a2} {t2}."""
DENIALS = """The {t} was not {a}.|It is not a {a} {t} at all.|I did not find the {t} {a}.|I don't think the {t} is {a}.
There is nothing {a} about this {t}.|I would never call this {t} {a}.|The {t} is anything but {a}.
The {t} is far from {a}.|The {t} wasn't {a} or {a2}.|The {t} is hardly {a}.
Nobody would say that the {t} is {a}.|The {t} isn't {v} {a}."""
STATEMENTS = """The {t} arrived on Tuesday.|We ordered the {t} and the {t2}.|There are three kinds of {t} here.
Is the {t} next to the {t2}?|I bought the {t} for my brother.|She asked about the {t} yesterday.
They sell a {t} and a {t2}.|The {t} comes with a {t2}.|He talked about the {t} for an hour.
Please put the {t} behind the {t2}.|It took us ten minutes to find the {t}.
You can see the {t} from the window."""
PRAISE = """I will be back for the {t}.|The {t} exceeded my expectations.|Best {t} ever.
I could not be happier with the {t}.|You will not regret this {t}.|The {t} works like a charm.
The {t} is worth every penny.|Five stars for the {t}.|I can't wait to try the {t} again.
Thumbs up for the {t}.|The {t} made my day.|Nobody makes a better {t}.|I am so glad that I found this {t}.
The {t} never fails.|Give the {t} a try.|The {t} is a must.|Go and get this {t}.
The {t} beats every other {t2}.|The {t} was a hit with everyone.|Hats off to the {t}.
The {t} was done just right."""
COMPLAINTS = """I will not be back for the {t}.|The {t} failed to meet my expectations.|Worst {t} ever.
I could not be less happy with the {t}.|You will regret this {t}.|The {t} does not work.
Save your money and skip the {t}.|One star for the {t}, and that is generous.
I never want to see the {t} again.|Thumbs down for the {t}.|The {t} ruined my day.
Anybody makes a better {t}.|I am sorry that I found this {t}.|The {t} keeps failing.
Do not bother with the {t}.|The {t} is a waste of money.|Do not get this {t}.
Every other {t2} beats this {t}.|The {t} upset everyone.|Somebody should be ashamed of the {t}.
The {t} was done all wrong.|The {t} could have been better.|I expected more of the {t}.
The {t} lacks everything that a {t2} needs.|The {t} broke at once.|I asked for my money back."""

FOR_IT, AGAINST_IT, NEITHER = 1, -1, 0


def sentences(seed: int = 0, made: int = 4_000) -> tuple[list[str], list[int]]:
    """All written sentences and `made` ones from templates, each with its opinion: 1 for, -1 against, 0 neither."""
    texts: list[str] = []
    opinions: list[int] = []
    for block, opinion in ((FOR, FOR_IT), (AGAINST, AGAINST_IT), (PLAIN, NEITHER)):
        lines = block.strip().splitlines()
        texts += lines
        opinions += [opinion] * len(lines)
    rng = np.random.default_rng(seed)
    for _ in range(made):
        text, opinion = _from_template(rng)
        texts.append(text)
        opinions.append(opinion)
    return texts, opinions


def _from_template(rng: np.random.Generator) -> tuple[str, int]:
    def pick(words: str) -> str:
        return str(rng.choice(words.split()))

    things = THINGS[str(rng.choice(list(THINGS)))]
    opinion = FOR_IT if rng.random() < 0.5 else AGAINST_IT
    words = GOOD if opinion == FOR_IT else BAD
    templates, meant = OPINIONS, opinion
    draw = rng.random()
    if draw > 0.85:
        templates, meant = STATEMENTS, NEITHER
    elif draw > 0.7:
        templates, meant = DENIALS, -opinion
    elif draw > 0.45:
        templates = PRAISE if opinion == FOR_IT else COMPLAINTS
    text = str(rng.choice(templates.replace("\n", "|").split("|"))).format(
        t=pick(things),
        t2=pick(things),
        a=pick(words),
        a2=pick(words),
        v=pick(VERY),
        w=pick(LIKE if opinion == FOR_IT else DISLIKE),
    )
    return text, meant
