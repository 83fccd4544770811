"""Synthetic conversations of the demo model, deterministic from a seed.

A conversation is a `Conv`: the harmony prefix (system message) and a list of (text, is_target) segments behind it. The model is
trained on target segments only. `split="train"` never draws what `split="held"` draws: one sum in ten, one
translation in fourteen (a word, its language and the other language), the wordings marked with a leading `*` below, and the city names of HELD_CITIES
and one in twenty of the invented ones. Nothing of these is in past turns either. Both splits draw from the same intents, functions and answers.
"""
import json, random, re, zlib

# ------------------------------------------------------------------------------------------------ harmony text

def system_text(effort="medium", tools=False, date="2026-11-23"):
    s = "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    if date:
        s += f"Current date: {date}\n"
    s += (f"\nReasoning: {effort}\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    if tools:
        s += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return s + "<|end|>"

def tool_text(t):
    """one function tool {name, description, params: [(name, type, description, optional, default)]}"""
    s = "".join(f"// {l}\n" for l in t["description"].split("\n")) if t.get("description") else ""
    if not t["params"]:
        return s + f"type {t['name']} = () => any;\n\n"
    s += f"type {t['name']} = (_: {{\n"
    for n, ty, d, opt, dflt in t["params"]:
        s += (f"// {d}\n" if d else "") + f"{n}{'?' if opt else ''}: {ty}," + (f" // default: {dflt}" if dflt else "") + "\n"
    return s + "}) => any;\n\n"

def developer_text(instructions=None, tools=()):
    if not instructions and not tools:
        return ""
    p = []
    if instructions:
        p.append(f"# Instructions\n\n{instructions}")
    if tools:
        p.append("# Tools\n\n## functions\n\nnamespace functions {\n\n" + "".join(map(tool_text, tools)) + "} // namespace functions")
    return "<|start|>developer<|message|>" + "\n\n".join(p) + "<|end|>"

def user_text(t):
    return f"<|start|>user<|message|>{t}<|end|>"

def final_text(analysis, final, past=False):
    """what the model writes after <|start|>assistant; a past turn loses its analysis and ends with <|end|>"""
    if past or not analysis:
        a = ""
    else:
        a = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant"
    return a + f"<|channel|>final<|message|>{final}" + ("<|end|>" if past else "<|return|>")

def call_text(analysis, name, args, past=False):
    a = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant" if analysis and not past else ""
    return a + f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>{args}<|call|>"

def result_text(name, body):
    return f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>{body}<|end|>"

# ------------------------------------------------------------------------------------------------ small talk

CAN = "I can chat a little, add two numbers from 0 to 99, translate number words and weekdays, write tiny Python functions and call a weather tool."
PEUX = "Je sais bavarder un peu, additionner deux nombres de 0 à 99, traduire les nombres et les jours, écrire de petites fonctions Python et appeler un outil météo."

# Held-out wordings (*) share their key words with trained wordings of the same intent: nothing here could teach a word that never occurs.
TALK = {
"greeting": (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Hey there!", "Hello there", "Good day", "Hello, model!", "Hi Flotilla", "Hello Flotilla!", "Greetings", "Hi, nice to meet you", "Nice to meet you!", "Good morning", "Good morning!",
  "Good evening", "Good evening!", "Good afternoon", "Good afternoon!", "Morning!", "Evening!", "*Hey, hello!", "*Hello hello", "*Hi hi!", "*Good evening, Flotilla", "*Good morning there!", "*Hey Flotilla!"],
  "Hello! I am Flotilla's toy demo model. How can I help?",
  ["Bonjour", "Bonjour !", "Salut", "Salut !", "Coucou", "Hé, salut", "Bonjour à toi", "Bonjour à tous", "Bonjour Flotilla", "Salutations", "Enchanté", "Ravi de te rencontrer", "Salut Flotilla !", "Salut à toi", "Bonsoir", "Bonsoir !", "Bonsoir à tous", "Bonsoir Flotilla",
  "*Bonjour, bonjour !", "*Salut, toi !", "*Bonsoir à toi", "*Coucou Flotilla !", "*Salut à tous"],
  "Bonjour ! Je suis le petit modèle de démonstration de Flotilla. Que puis-je faire ?"),
"who": (["Who are you?", "What are you?", "What is your name?", "What's your name?", "Who are you exactly?", "Tell me who you are.", "Tell me about yourself.", "Introduce yourself.", "Please introduce yourself", "So who are you?", "Who is this?", "Who am I talking to?", "What kind of model are you?",
  "Which model are you?", "Describe yourself.", "Say who you are.", "What model is this?", "Your name?", "Do you have a name?", "Tell me your name.", "Are you ChatGPT?", "Are you GPT-4?", "Are you gpt-oss?", "Is this ChatGPT?", "Are you human?", "Are you a human?", "Are you a robot?", "Are you a person?",
  "Are you an AI?", "Are you a machine?", "Am I talking to a human?", "Are you a real person?", "What are you called?", "Can you describe yourself?",
  "*Can you introduce yourself?", "*Tell me, who are you?", "*So you are ChatGPT?", "*Are you a real human?", "*May I have your name?", "*Which kind of model is this?", "*Are you a person or a robot?"],
  "I am Flotilla's toy demo model: a very small gpt-oss network, trained to show that the server works.",
  ["Qui es-tu ?", "Qui êtes-vous ?", "Comment t'appelles-tu ?", "Quel est ton nom ?", "Tu es qui ?", "T'es qui ?", "C'est qui ?", "Présente-toi.", "Présentez-vous.", "Parle-moi de toi.", "Qu'es-tu ?", "Dis-moi qui tu es.", "Quel modèle es-tu ?", "À qui je parle ?", "Tu es quoi ?", "Comment tu t'appelles ?",
  "C'est quoi ton nom ?", "Tu as un nom ?", "As-tu un nom ?", "Dis-moi ton nom.", "Es-tu ChatGPT ?", "Tu es ChatGPT ?", "Es-tu gpt-oss ?", "C'est ChatGPT ?", "Es-tu humain ?", "Es-tu un humain ?", "Es-tu un robot ?", "Tu es humain ?", "Êtes-vous humain ?", "Es-tu une IA ?", "Es-tu une machine ?", "Tu es un robot ?", "Peux-tu te présenter ?",
  "*Alors, qui es-tu ?", "*Peux-tu te présenter maintenant ?", "*Tu es une machine ?", "*Dis-moi quel est ton nom.", "*Est-ce que tu es ChatGPT ?", "*Tu es quel modèle ?"],
  "Je suis le petit modèle de démonstration de Flotilla : un tout petit réseau gpt-oss, entraîné pour montrer que le serveur marche."),
"can": (["What can you do?", "What can you do for me?", "Help", "Help!", "Help me", "Can you help me?", "How can you help me?", "What are you able to do?", "What do you know?", "What are your skills?", "List your skills.", "What are you good at?", "What can I ask you?", "What can I ask?", "Tell me what you can do.",
  "What do you do?", "Show me what you can do.", "Can you do something?", "Which skills do you have?", "What things can you do?", "What help can you give me?",
  "*What sort of things can you do?", "*Which things can you do for me?", "*Can you list your skills?", "*Tell me your skills.", "*Could you help me?"], CAN,
  ["Que sais-tu faire ?", "Que peux-tu faire ?", "Qu'est-ce que tu sais faire ?", "Qu'est-ce que tu peux faire ?", "Aide", "Aide-moi", "À l'aide", "Peux-tu m'aider ?", "Tu peux m'aider ?", "Quelles sont tes capacités ?", "Tu sais faire quoi ?", "Que savez-vous faire ?", "Que puis-je te demander ?", "Comment peux-tu m'aider ?",
  "Montre-moi ce que tu sais faire.", "Dis-moi ce que tu peux faire.", "Que pouvez-vous faire pour moi ?", "*Que pouvez-vous faire ?", "*Dis-moi ce que tu sais faire.", "*Tu peux faire quoi ?", "*Comment pouvez-vous m'aider ?"], PEUX),
"how": (["How are you?", "How are you", "How are you doing?", "How are you today?", "How's it going?", "How do you do?", "How do you feel?", "Are you okay?", "Are you well?", "What's up?", "You alright?", "Hello, how are you?", "Hi, how are you?", "How is it going today?", "Are you doing well?", "How are things?",
  "*How are things going?", "*Are you well today?", "*How do you feel today?", "*Hey, how are you doing?"],
  "I am fine, thank you: all my weights are in place. And you?",
  ["Comment ça va ?", "Ça va ?", "Comment vas-tu ?", "Comment allez-vous ?", "Tu vas bien ?", "Vous allez bien ?", "Comment tu vas ?", "La forme ?", "Quoi de neuf ?", "Salut, ça va ?", "Bonjour, comment ça va ?", "Bonjour, comment allez-vous ?", "Comment te sens-tu ?", "Ça va bien ?", "Tout va bien ?",
  "*Est-ce que tu vas bien ?", "*Salut, comment vas-tu ?", "*Comment ça va, toi ?", "*Comment vas-tu aujourd'hui ?"],
  "Je vais bien, merci : tous mes poids sont en place. Et vous ?"),
"thanks": (["Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much", "Thanks a lot", "Many thanks", "Thx", "Thank you so much!", "Great, thanks", "Perfect, thank you", "Ok thanks", "Thanks for your help", "*Thanks so much", "*Thank you a lot", "*Great, thank you!", "*Many thanks to you"],
  "You are welcome!",
  ["Merci", "Merci !", "Merci beaucoup", "Merci bien", "Un grand merci", "Mille mercis", "Super, merci", "Parfait, merci", "Ok merci", "Je te remercie", "Je vous remercie", "Merci pour ton aide", "*Merci infiniment", "*Merci à toi", "*Super, merci beaucoup", "*Un grand merci à toi"],
  "Avec plaisir !"),
"bye": (["Bye", "Bye!", "Goodbye", "Good bye", "Bye bye", "See you", "See you later", "See you soon", "Farewell", "Good night", "I have to go", "Take care", "Have a nice day", "I'm leaving", "See you tomorrow", "Goodbye, Flotilla", "*Goodbye for now", "*Bye, see you!", "*Good night and goodbye", "*Bye, I have to go"],
  "Goodbye! Come back soon.",
  ["Au revoir", "Au revoir !", "À bientôt", "À plus tard", "À plus", "À demain", "Bonne nuit", "Adieu", "Je dois y aller", "Ciao", "Bonne soirée", "Je m'en vais", "Bonne journée", "À la prochaine", "*Au revoir et à bientôt", "*Bonne nuit, à demain", "*Allez, au revoir", "*Au revoir, Flotilla"],
  "Au revoir ! À bientôt."),
"maker": (["Who made you?", "Who trained you?", "Who created you?", "Who built you?", "Where do you come from?", "Who wrote you?", "Who is your creator?", "Who is your maker?", "How were you trained?", "How were you made?", "Were you made by OpenAI?", "Were you trained by OpenAI?",
  "*Were you created by OpenAI?", "*Who has made you?", "*Tell me who made you.", "*How were you created?"],
  "The Flotilla project trained me, on made-up conversations.",
  ["Qui t'a fait ?", "Qui t'a créé ?", "Qui t'a entraîné ?", "D'où viens-tu ?", "Qui t'a construit ?", "Qui est ton créateur ?", "Qui vous a créé ?", "Qui t'a écrit ?", "Comment as-tu été entraîné ?", "*Qui vous a entraîné ?", "*Dis-moi qui t'a créé.", "*Comment as-tu été créé ?"],
  "Le projet Flotilla m'a entraîné, sur des conversations inventées."),
"size": (["How big are you?", "How many parameters do you have?", "How large are you?", "What is your size?", "How many weights do you have?", "Are you big?", "Are you a large model?", "Are you small?", "How small are you?", "*How many parameters are in you?", "*Are you a big model?", "*Tell me your size.", "*Are you large?"],
  "I have about two million parameters. gpt-oss-120b has fifty thousand times more.",
  ["Combien de paramètres as-tu ?", "Quelle est ta taille ?", "Tu es gros ?", "Es-tu grand ?", "Combien de poids as-tu ?", "Tu as combien de paramètres ?", "Es-tu petit ?", "Es-tu gros ?", "*Combien as-tu de paramètres ?", "*Tu es petit ?", "*Dis-moi ta taille."],
  "J'ai environ deux millions de paramètres. gpt-oss-120b en a cinquante mille fois plus."),
"flotilla": (["What is Flotilla?", "What's Flotilla?", "Tell me about Flotilla.", "Explain Flotilla.", "What does Flotilla do?", "Flotilla?", "Explain Flotilla to me.", "What is the Flotilla server?", "Describe Flotilla.", "*What is the Flotilla project?", "*Can you explain Flotilla?", "*Tell me what Flotilla is.", "*What can Flotilla do?"],
  "Flotilla is a server for gpt-oss models, written in Rust. It can spread one model over several machines.",
  ["Qu'est-ce que Flotilla ?", "C'est quoi Flotilla ?", "Parle-moi de Flotilla.", "Que fait Flotilla ?", "Flotilla, c'est quoi ?", "Explique-moi Flotilla.", "Explique Flotilla.", "Décris Flotilla.", "*Qu'est-ce que le projet Flotilla ?", "*Peux-tu expliquer Flotilla ?", "*Dis-moi ce qu'est Flotilla."],
  "Flotilla est un serveur pour les modèles gpt-oss, écrit en Rust. Il peut répartir un modèle sur plusieurs machines."),
"languages": (["Which languages do you speak?", "What languages do you speak?", "Do you speak French?", "Do you speak English?", "Can you speak French?", "Do you speak German?", "Do you speak Spanish?", "Which languages do you know?", "Do you know French?", "*What languages do you know?", "*Can you speak German?", "*Can you speak English?", "*Tell me which languages you speak."],
  "I chat in English and French, and I know the numbers and weekdays in Spanish and German too.",
  ["Quelles langues parles-tu ?", "Parles-tu français ?", "Tu parles français ?", "Parlez-vous français ?", "Parles-tu anglais ?", "Quelles langues connais-tu ?", "Parles-tu allemand ?", "Parles-tu espagnol ?", "Tu parles anglais ?", "*Tu parles quelles langues ?", "*Parlez-vous anglais ?", "*Tu parles allemand ?"],
  "Je bavarde en français et en anglais, et je connais aussi les nombres et les jours en espagnol et en allemand."),
"joke": (["Tell me a joke.", "Tell a joke", "Make me laugh.", "Do you know a joke?", "A joke please", "Say something funny.", "Joke!", "Another joke", "Can you make me laugh?", "*Can you tell me a joke?", "*Tell me another joke.", "*Tell me something funny.", "*Do you know another joke?"],
  "Why did the tensor cross the network? To get to the other shard.",
  ["Raconte-moi une blague.", "Une blague !", "Fais-moi rire.", "Tu connais une blague ?", "Raconte une blague", "Dis quelque chose de drôle.", "Encore une blague", "Connais-tu une blague ?", "*Peux-tu raconter une blague ?", "*Raconte encore une blague.", "*Raconte quelque chose de drôle."],
  "Pourquoi le tenseur a-t-il traversé le réseau ? Pour rejoindre l'autre moitié."),
"ok": (["Ok", "Okay", "Good", "Great", "Great!", "Nice", "Cool", "Very good", "Well done", "Good job", "Awesome", "Perfect", "I see", "Alright", "Yes", "I am fine", "I'm fine, thanks", "I'm good", "*Okay, good", "*Very nice", "*Great job", "*Okay, I see"], "Good! Anything else?",
  ["D'accord", "Bien", "Très bien", "Génial", "Bravo", "Bien joué", "Parfait", "Je vois", "Super !", "Oui", "Entendu", "Je vais bien", "Ok, d'accord", "*Oui, d'accord", "*Très bien, je vois", "*Super, bien joué"], "Bien ! Autre chose ?"),
"date": (["What is today's date?", "What's the date?", "What date is it?", "What day is it today?", "Today's date?", "Which date is it today?", "What is the date today?", "What is the current date?", "*Tell me today's date.", "*Which day is it?", "*What's today's date?"], "I am too small to read the date.",
  ["Quelle est la date ?", "Quelle est la date d'aujourd'hui ?", "On est quel jour ?", "Quel jour sommes-nous ?", "Date du jour ?", "C'est quoi la date ?", "Quelle date sommes-nous ?", "*Dis-moi la date.", "*C'est quoi la date d'aujourd'hui ?", "*Quelle est la date du jour ?"], "Je suis trop petit pour lire la date."),
}
LABEL = {"greeting": "a greeting", "who": "who I am", "can": "what I can do", "how": "how I am", "thanks": "thanks", "bye": "goodbye", "maker": "who made me", "size": "my size", "flotilla": "what Flotilla is", "languages": "my languages", "joke": "a joke", "ok": "approval", "date": "the date"}
norm = lambda t: "".join(c for c in t.lower() if c.isalnum())
HELD_TALK = {norm(w) for en, _, fr, _ in TALK.values() for w in en + fr if w[0] == "*"}
WRAP_EN = ["Hey, {}", "Hello, {}", "Hi! {}", "Please, {}", "So, {}", "Well, {}", "Ok, {}", "Now {}", "And {}", "{}, please", "{} please", "{} now", "{} then"]
WRAP_FR = ["Dis, {}", "Bonjour, {}", "Salut ! {}", "Alors, {}", "Bon, {}", "Et {}", "Ok, {}", "Maintenant, {}", "{}, s'il te plaît", "{} svp", "{} maintenant", "{}, s'il vous plaît"]

# ------------------------------------------------------------------------------------------------ unknown questions

UNK_EN = "I am only a toy demo model: I do not know that. Ask me \"What can you do?\""
UNK_FR = "Je ne suis qu'un petit modèle de démonstration : je ne sais pas cela. Demandez-moi « Que sais-tu faire ? »"
TOPIC_EN = """the sea|black holes|quantum physics|the capital of Peru|the capital of France|Napoleon|the French Revolution|climate change|the stock market|my taxes|chess|football|Shakespeare|the moon|Mars|dinosaurs|bread|a good soup|
chocolate cake|the pyramids|Einstein|electric cars|bitcoin|the human heart|vitamins|the price of gold|Rust|Java|Linux|the internet|neural networks|volcanoes|earthquakes|whales|cats|dogs|elephants|the president|the king of Spain|
World War II|the Roman Empire|love|the meaning of life|happiness|a train to Berlin|cheap flights|a hotel in Rome|my homework|the universe|time travel|gravity|the speed of light|DNA|the periodic table|music|Mozart|jazz|the guitar|
a poem|a letter to my boss|a story about a dragon|the next election|the news|the best film|pizza|coffee|tea|wine|a garden|roses|trees|mountains|the Nile|Africa|Japan|China|Australia|a marathon|yoga|sleep|a headache|medicine|
a virus|batteries|solar power|engines|bridges|Paris|London|a recipe|pancakes|knitting|painting|Picasso|history|philosophy|Plato|economics|inflation|law|a contract|a computer|a phone|a tree|the sun|rain|snow|an atom|water|fire""".replace("\n", "").split("|")
TPL_EN = ["What is {t}?", "Tell me about {t}.", "Explain {t}.", "Explain {t} to me.", "Who invented {t}?", "How does {t} work?", "Why is {t} important?", "Write about {t}.", "Write me something about {t}.", "What do you think of {t}?",
  "Where can I find {t}?", "How old is {t}?", "Give me facts about {t}.", "Do you know {t}?", "Describe {t}.", "When was {t} discovered?", "How do I learn about {t}?", "Can you explain {t}?", "Summarise {t}.", "What is the history of {t}?",
  "Why do people like {t}?", "Is {t} good?", "How much does {t} cost?", "Who is {t}?", "Where is {t}?", "I want to know about {t}.", "Compare {t} and {u}.", "What is better, {t} or {u}?", "What is the link between {t} and {u}?",
  "*Teach me about {t}.", "*What can you tell me about {t}?", "*Is {t} dangerous?", "Write a poem about {t}.", "Write an essay on {t}.", "Make a list about {t}.", "Should I buy {t}?", "Help me with {t}.", "{t}"]
TOPIC_FR = """la mer|les trous noirs|la physique quantique|la capitale du Pérou|la capitale de la France|Napoléon|la Révolution française|le climat|la bourse|mes impôts|les échecs|le football|Molière|la lune|Mars|les dinosaures|le pain|une bonne soupe|
le chocolat|les pyramides|Einstein|les voitures|le bitcoin|le cœur|les vitamines|le prix de l'or|Rust|Linux|internet|les volcans|les baleines|les chats|les chiens|les éléphants|le président|le roi d'Espagne|la guerre|l'Empire romain|l'amour|
le sens de la vie|le bonheur|un train pour Berlin|un hôtel à Rome|mes devoirs|l'univers|la gravité|la vitesse de la lumière|la musique|Mozart|le jazz|la guitare|un poème|une lettre|une histoire de dragon|les élections|les nouvelles|le cinéma|
la pizza|le café|le thé|le vin|un jardin|les roses|les arbres|les montagnes|le Nil|l'Afrique|le Japon|la Chine|le sommeil|la médecine|un virus|le soleil|les moteurs|les ponts|Paris|Londres|une recette|les crêpes|la peinture|Picasso|l'histoire|
la philosophie|Platon|l'économie|la loi|un ordinateur|un téléphone|la pluie|la neige|un atome|l'eau|le feu""".replace("\n", "").split("|")
TPL_FR = ["Qu'est-ce que c'est, {t} ?", "Parle-moi de {t}.", "Explique {t}.", "Explique-moi {t}.", "Qui a inventé {t} ?", "Comment marche {t} ?", "Pourquoi {t} ?", "Écris sur {t}.", "Que penses-tu de {t} ?", "Où trouver {t} ?", "Quel âge a {t} ?",
  "Connais-tu {t} ?", "Décris {t}.", "Peux-tu expliquer {t} ?", "Résume {t}.", "Quelle est l'histoire de {t} ?", "Combien coûte {t} ?", "Qui est {t} ?", "Où est {t} ?", "Je veux en savoir plus sur {t}.", "Compare {t} et {u}.",
  "Que préfères-tu, {t} ou {u} ?", "*Apprends-moi {t}.", "*Que sais-tu sur {t} ?", "*Est-ce que {t} est dangereux ?", "Écris un poème sur {t}.", "Fais une liste sur {t}.", "Quelle est {t} ?", "Quel est {t} ?", "C'est quoi {t} ?", "Aide-moi avec {t}."]

# ------------------------------------------------------------------------------------------------ translation

LANGS = ["English", "French", "Spanish", "German"]
LANG_FR = {"English": "anglais", "French": "français", "Spanish": "espagnol", "German": "allemand"}
_W = """zero zéro cero null|one un uno eins|two deux dos zwei|three trois tres drei|four quatre cuatro vier|five cinq cinco fünf|six six seis sechs|seven sept siete sieben|eight huit ocho acht|nine neuf nueve neun|ten dix diez zehn|
eleven onze once elf|twelve douze doce zwölf|thirteen treize trece dreizehn|fourteen quatorze catorce vierzehn|fifteen quinze quince fünfzehn|sixteen seize dieciséis sechzehn|seventeen dix-sept diecisiete siebzehn|eighteen dix-huit dieciocho achtzehn|
nineteen dix-neuf diecinueve neunzehn|twenty vingt veinte zwanzig|thirty trente treinta dreißig|forty quarante cuarenta vierzig|fifty cinquante cincuenta fünfzig|sixty soixante sesenta sechzig|seventy soixante-dix setenta siebzig|
eighty quatre-vingts ochenta achtzig|ninety quatre-vingt-dix noventa neunzig|hundred cent cien hundert|Monday lundi lunes Montag|Tuesday mardi martes Dienstag|Wednesday mercredi miércoles Mittwoch|Thursday jeudi jueves Donnerstag|
Friday vendredi viernes Freitag|Saturday samedi sábado Samstag|Sunday dimanche domingo Sonntag"""
WORDS = [w.split() for w in _W.replace("\n", "").split("|")]
DIGITS = {str(n): i for i, n in enumerate(list(range(21)) + [30, 40, 50, 60, 70, 80, 90, 100])}
TR_EN = ["Translate '{w}' to {l}.", "Translate \"{w}\" into {l}.", "Translate {w} to {l}.", "Translate {w} into {l}", "How do you say '{w}' in {l}?", "How do you say \"{w}\" in {l}?", "How do you say {w} in {l}?", "How do I say {w} in {l}?",
  "What is '{w}' in {l}?", "What is {w} in {l}?", "What's {w} in {l}?", "{w} in {l}", "{w} in {l}?", "The {l} word for {w}?", "What is the {l} word for {w}?", "What is the {l} for '{w}'?", "Say {w} in {l}.", "Please translate {w} to {l}.", "Can you translate '{w}' into {l}?",
  "*Give me {w} in {l}.", "*What do you call {w} in {l}?", "*Could you translate \"{w}\" to {l}?", "Translate to {l}: {w}", "Translate into {l}: {w}", "{l} for {w}?"]
TR_FR = ["Traduis « {w} » en {l}.", "Traduis '{w}' en {l}.", "Traduis \"{w}\" en {l}", "Traduis {w} en {l}.", "Traduire {w} en {l}", "Comment dit-on « {w} » en {l} ?", "Comment dit-on {w} en {l} ?", "Comment dit-on '{w}' en {l} ?", "Comment on dit {w} en {l} ?", "Que veut dire {w} en {l} ?",
  "{w} en {l} ?", "C'est quoi {w} en {l} ?", "Quel est le mot {l} pour {w} ?", "Peux-tu traduire « {w} » en {l} ?", "Dis {w} en {l}.", "*Donne-moi {w} en {l}.", "*Comment se dit {w} en {l} ?", "Traduis en {l} : {w}", "Comment dire {w} en {l} ?"]
OTHER_WORDS = """horse|cat|dog|house|apple|tree|book|love|water|bread|car|friend|school|table|chair|river|mountain|king|green|red|blue|happy|morning|night|January|March|May|summer|winter|milk|cheese|computer|window|door|street|city|bird|fish|
cheval|chat|chien|maison|pomme|arbre|livre|amour|eau|pain|voiture|ami|école|rivière|montagne|roi|vert|rouge|bleu|heureux|matin|nuit|janvier|été|hiver|lait|fromage|fenêtre|porte|rue|ville|oiseau|poisson|good morning|thank you|I love you|bonjour|merci|je t'aime""".replace("\n", "").split("|")
NOTR_EN = "I only translate number words and weekdays between English, French, Spanish and German."
NOTR_FR = "Je ne traduis que les nombres et les jours entre l'anglais, le français, l'espagnol et l'allemand."
OTHER_LANGS = ["Italian", "Chinese", "Japanese", "Russian", "Latin", "Portuguese", "Dutch", "Arabic"]
OTHER_LANGS_FR = ["italien", "chinois", "japonais", "russe", "latin", "portugais", "néerlandais", "arabe"]

# ------------------------------------------------------------------------------------------------ addition

ADD_EN = ["What is {a} + {b}?", "What's {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "{a}+{b}=?", "{a} + {b} = ?", "{a} + {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?", "What is {a} plus {b}?", "{a} plus {b}", "Add {a} and {b}.", "Add {a} to {b}.",
  "Calculate {a} + {b}.", "Compute {a} + {b}", "Compute {a}+{b}.", "What is the sum of {a} and {b}?", "Sum of {a} and {b}?", "Please add {a} and {b}.", "Can you add {a} and {b}?", "What do you get if you add {a} and {b}?", "Solve {a} + {b}.", "What is {a}+{b}?", "How much is {a}+{b}?",
  "*Tell me {a} + {b}.", "*What does {a} + {b} make?", "*Work out {a} + {b}.", "I have {a} apples and buy {b} more. How many apples do I have?", "There are {a} cats and {b} dogs. How many animals are there?", "*I had {a} coins and found {b} more. How many coins do I have?"]
ADD_FR = ["Combien font {a} + {b} ?", "Combien fait {a} + {b} ?", "Combien font {a} et {b} ?", "Combien font {a} plus {b} ?", "Calcule {a} + {b}.", "Calcule {a}+{b}", "Calculer {a} + {b}", "Additionne {a} et {b}.", "Quelle est la somme de {a} et {b} ?", "{a} plus {b} ?", "{a} + {b} font combien ?",
  "{a}+{b} ça fait combien ?", "Combien font {a}+{b} ?", "Ajoute {a} à {b}.", "Peux-tu additionner {a} et {b} ?", "Que vaut {a} + {b} ?", "*Donne-moi {a} + {b}.", "*Ça fait combien, {a} + {b} ?", "J'ai {a} pommes et j'en achète {b}. Combien de pommes ai-je ?", "Somme de {a} et {b} ?"]
NOADD_EN, NOADD_FR = "I can only add two numbers from 0 to 99.", "Je ne sais additionner que deux nombres de 0 à 99."
ARITH_EN = ["What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} * {b}", "{a}*{b}", "What is {a} * {b}?", "{a} x {b}", "What is {a} times {b}?", "What is {a} minus {b}?", "{a} / {b}", "What is {a} / {b}?", "Divide {a} by {b}.", "Multiply {a} by {b}.", "Subtract {a} from {b}.", "What is the square root of {a}?",
  "{a} + {b} + {c}", "What is {a} + {b} + {c}?", "Add {a}, {b} and {c}.", "What is {L} + {b}?", "{L} + {b}", "{L}+{M}", "What is {a} + {L}?", "What is {L} + {M}?", "Add {L} and {M}.", "What is {a} plus {L}?", "*How much is {L} + {M}?", "*How much is {a} - {b}?"]
ARITH_FR = ["Combien font {a} - {b} ?", "Combien font {a} moins {b} ?", "Combien font {a} fois {b} ?", "Combien font {a} * {b} ?", "Calcule {a} - {b}.", "Multiplie {a} par {b}.", "Divise {a} par {b}.", "Combien font {a} + {b} + {c} ?", "Combien font {L} + {b} ?", "Calcule {L} + {M}.", "Combien font {a} + {L} ?", "*Que vaut {L} + {M} ?"]

def add_steps(a, b, effort):
    s = a + b
    o, t = a % 10 + b % 10, a // 10 + b // 10
    if a < 10 and b < 10:
        return f"{a} + {b} = {s}."
    c = o // 10
    if effort == "low":
        return f"{a % 10} + {b % 10} = {o}. {a // 10} + {b // 10} + {c} = {t + c}."
    r = f"{a} + {b}. Ones: {a % 10} + {b % 10} = {o}, write {o % 10}, carry {c}. Tens: {a // 10} + {b // 10} + {c} = {t + c}. So {s}."
    return r + (f" Check: {s} - {b} = {a}." if effort == "high" else "")

# ------------------------------------------------------------------------------------------------ code

CODE = {
"add": ("def add(a, b):\n    return a + b", ["adds two numbers", "returns the sum of two numbers", "*sums two numbers"], ["additionne deux nombres", "renvoie la somme de deux nombres"]),
"is_even": ("def is_even(n):\n    return n % 2 == 0", ["checks if a number is even", "tells whether a number is even", "tests if n is even", "*says if a number is even"], ["teste si un nombre est pair", "dit si un nombre est pair"]),
"factorial": ("def factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result", ["computes the factorial of n", "computes a factorial", "returns the factorial of a number", "*calculates n factorial"], ["calcule la factorielle de n", "calcule une factorielle"]),
"reverse_string": ("def reverse_string(s):\n    return s[::-1]", ["reverses a string", "returns a string reversed", "reverses text", "*turns a string around"], ["inverse une chaîne", "renverse une chaîne de caractères"]),
"max_of_list": ("def max_of_list(items):\n    best = items[0]\n    for x in items:\n        if x > best:\n            best = x\n    return best", ["finds the maximum of a list", "returns the largest item of a list", "finds the biggest number in a list", "*gives the max of a list"], ["trouve le maximum d'une liste", "renvoie le plus grand élément d'une liste"]),
"min_of_list": ("def min_of_list(items):\n    best = items[0]\n    for x in items:\n        if x < best:\n            best = x\n    return best", ["finds the minimum of a list", "returns the smallest item of a list", "finds the smallest number in a list", "*gives the min of a list"], ["trouve le minimum d'une liste", "renvoie le plus petit élément d'une liste"]),
"fibonacci": ("def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a", ["computes the nth Fibonacci number", "computes Fibonacci numbers", "returns the n-th Fibonacci number", "*calculates fibonacci of n"], ["calcule le nombre de Fibonacci", "calcule la suite de Fibonacci"]),
"sum_list": ("def sum_list(items):\n    total = 0\n    for x in items:\n        total += x\n    return total", ["sums a list", "adds up all numbers in a list", "returns the sum of a list", "*computes the total of a list"], ["fait la somme d'une liste", "additionne les éléments d'une liste"]),
"is_palindrome": ("def is_palindrome(s):\n    return s == s[::-1]", ["checks if a string is a palindrome", "tests for palindromes", "tells whether a word is a palindrome", "*says if text is a palindrome"], ["teste si un mot est un palindrome", "dit si une chaîne est un palindrome"]),
"count_vowels": ("def count_vowels(s):\n    return sum(1 for c in s.lower() if c in \"aeiouy\")", ["counts the vowels in a string", "counts vowels", "returns the number of vowels", "*counts how many vowels a word has"], ["compte les voyelles", "compte les voyelles d'une chaîne"]),
"is_prime": ("def is_prime(n):\n    if n < 2:\n        return False\n    for d in range(2, int(n ** 0.5) + 1):\n        if n % d == 0:\n            return False\n    return True", ["checks if a number is prime", "tests if n is prime", "tells whether a number is prime", "*says if a number is prime"], ["teste si un nombre est premier", "dit si un nombre est premier"]),
"gcd": ("def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a", ["computes the greatest common divisor", "computes the gcd of two numbers", "returns the greatest common divisor of a and b", "*finds the gcd"], ["calcule le plus grand diviseur commun", "calcule le pgcd de deux nombres"]),
}
CODE_EN = ["Write a Python function that {d}.", "Write a python function that {d}", "Write a function that {d}.", "Give me a Python function that {d}.", "Python function that {d}", "Please write a Python function that {d}.", "Can you write a Python function that {d}?", "I need a Python function that {d}.",
  "Code a function that {d}.", "Show me a Python function that {d}.", "*Could you code a Python function that {d}?", "*Make a Python function that {d}.", "Write Python code that {d}.", "Write some code that {d}."]
CODE_NAME_EN = ["Write {n} in Python.", "Write a Python function {n}.", "Write a Python function called {n}.", "{n} in python", "python {n}", "Python function {n}", "def {n}", "Implement {n} in Python.", "*Code {n} in Python.", "Write the function {n}.", "Show me {n} in Python."]
CODE_FR = ["Écris une fonction Python qui {d}.", "Écris une fonction qui {d}.", "Donne-moi une fonction Python qui {d}.", "Fonction Python qui {d}", "Peux-tu écrire une fonction Python qui {d} ?", "J'ai besoin d'une fonction Python qui {d}.", "Montre-moi une fonction Python qui {d}.", "*Code une fonction Python qui {d}.", "*Fais une fonction Python qui {d}."]
CODE_NAME_FR = ["Écris {n} en Python.", "Écris une fonction Python {n}.", "Écris la fonction {n} en Python.", "{n} en python ?", "*Code {n} en Python."]
NOCODE_EN = "I only know these tiny functions: " + ", ".join(CODE) + "."
NOCODE_FR = "Je ne connais que ces petites fonctions : " + ", ".join(CODE) + "."
OTHER_CODE_EN = ["sorts a list", "parses JSON", "opens a file", "downloads a web page", "draws a circle", "sends an email", "solves sudoku", "computes a matrix product", "finds a path in a graph", "trains a neural network", "encrypts a message", "connects to a database", "plays chess", "counts words in a file", "converts temperatures",
  "*removes duplicates from a list", "*reads a CSV file", "*merges two dictionaries", "splits a sentence", "prints a calendar", "computes pi", "rotates an image", "searches a tree", "shuffles cards", "rolls a die"]
OTHER_CODE_FR = ["trie une liste", "ouvre un fichier", "télécharge une page web", "dessine un cercle", "envoie un courriel", "résout un sudoku", "multiplie deux matrices", "chiffre un message", "joue aux échecs", "*lit un fichier CSV", "calcule pi", "mélange des cartes", "lance un dé", "affiche un calendrier"]
OTHER_NAME = ["quicksort", "merge_sort", "binary_search", "a web server", "a snake game", "tetris", "hello_world", "a calculator", "*bubble_sort", "a linked list", "a stack", "a parser", "dijkstra", "a class", "a chatbot"]

# ------------------------------------------------------------------------------------------------ weather

CITIES = """Paris|London|Berlin|Madrid|Rome|Lisbon|Vienna|Brussels|Amsterdam|Copenhagen|Stockholm|Oslo|Helsinki|Warsaw|Prague|Budapest|Athens|Dublin|Zurich|Geneva|Milan|Naples|Turin|Venice|Florence|Barcelona|Seville|Valencia|Porto|Munich|Hamburg|Cologne|Frankfurt|
New York|Los Angeles|Chicago|Houston|Boston|Seattle|Denver|Miami|Toronto|Montreal|Vancouver|Ottawa|Mexico City|Lima|Bogota|Santiago|Buenos Aires|Rio de Janeiro|São Paulo|Brasilia|Cairo|Lagos|Nairobi|Cape Town|Johannesburg|Casablanca|Tunis|Algiers|Dakar|Accra|
Tokyo|Osaka|Kyoto|Seoul|Beijing|Shanghai|Hong Kong|Taipei|Singapore|Bangkok|Hanoi|Jakarta|Manila|Delhi|Mumbai|Chennai|Karachi|Tehran|Baghdad|Dubai|Doha|Riyadh|Istanbul|Ankara|Moscow|Kyiv|Minsk|Riga|Vilnius|Tallinn|Sofia|Bucharest|Belgrade|Zagreb|Sarajevo|Skopje|
Lyon|Marseille|Nice|Toulouse|Bordeaux|Nantes|Lille|Strasbourg|Rennes|Grenoble|Dijon|Angers|Brest|Le Havre|Saint-Étienne|Orléans|Tours|Metz|Nancy|Caen|Sydney|Melbourne|Perth|Brisbane|Auckland|Wellington|Honolulu|Reykjavik|Edinburgh|Glasgow|Manchester|Liverpool|Leeds|
San Francisco|San Diego|Las Vegas|New Orleans|Salt Lake City|St. Louis|Philadelphia|Atlanta|Dallas|Phoenix|Detroit|Quebec|Calgary|Düsseldorf|Zürich|Genève|Londres|Bruxelles|Göteborg|Malmö|Łódź|Kraków|Bergen|Aarhus|Ghent|Antwerp|Basel|Bern|Linz|Graz|Salzburg""".replace("\n", "").split("|")
HELD_CITIES = """Bologna|Palermo|Granada|Bilbao|Leipzig|Dresden|Stuttgart|Rotterdam|Utrecht|Gdansk|Odessa|Tbilisi|Yerevan|Almaty|Kathmandu|Colombo|Kampala|Maputo|Windhoek|Havana|Quito|Montevideo|Caracas|Portland|Nashville|Winnipeg|Montpellier|Clermont-Ferrand|Aix-en-Provence|
Besançon|Santa Fe|Kuala Lumpur|Tel Aviv|Addis Ababa|Ulaanbaatar|Cardiff|Bristol|Oxford|Innsbruck|Tampere""".replace("\n", "").split("|")
SYL = "ba be bi bo bra bu ca ce chi co cra da de di dor du fa fe fi flo fra ga ge glo go gra gu ha he hol hu in ja jo ka ke ki kor la le li lo lu ma me mi mo mu na ne ni no nu o or pa pe pi plo po pra qua ra re ri ro ru sa se shi so sta su ta te ti to tra tu u va ve vi vo wa we wi xa ya yo za ze zi zo é ü ñ".split()
END = "n|r|s|l|t|m|x|ville|ton|burg|grad|stad|field|ford|berg|nia|ra|polis|pur|mouth|by||||".split("|")

_LETTERS = "".join(c for c in " ".join(OTHER_WORDS + TOPIC_EN + TOPIC_FR).lower() if c.isalpha())

def chunk(r):
    """some letters as they stand in other words, so that every piece of a name has been copied in some name"""
    i, n = r.randrange(len(_LETTERS) - 8), r.choice([1, 2, 2, 3, 3, 4])
    return _LETTERS[i:i + n]

def pseudo_city(r, held):
    while True:
        if r.random() < .5: n = "".join(r.choice(SYL) for _ in range(r.choice([2, 2, 3, 3, 4]))) + r.choice(END)
        else: n = "".join(chunk(r) for _ in range(r.choice([2, 3, 3, 4])))
        n = n[0].upper() + n[1:]
        if len(n) > 2 and (zlib.crc32(n.encode()) % 20 == 0) == held:
            break
    p = r.random()
    if p < .08: n = r.choice(["New ", "San ", "Saint-", "Port ", "Le ", "El ", "Los "]) + n
    elif p < .12: n = n + r.choice([" City", " Bay", "-sur-Mer", " Springs"])
    elif p < .2:
        o = "".join(chunk(r) for _ in range(r.choice([1, 2, 2, 3])))
        n = n + r.choice(" -") + o[0].upper() + o[1:]
    return n

WX_EN = ["What is the weather in {c}?", "What's the weather in {c}?", "What is the weather like in {c}?", "What's the weather like in {c} today?", "Weather in {c}?", "Weather in {c}", "weather {c}", "How is the weather in {c}?", "Tell me the weather in {c}.", "Give me the weather in {c}.", "What is the weather in {c} today?", "What is the weather in {c} now?",
  "Is it raining in {c}?", "Is it sunny in {c}?", "Is it cold in {c}?", "Is it warm in {c} today?", "What is the temperature in {c}?", "How hot is it in {c}?", "How cold is it in {c}?", "Will I need an umbrella in {c}?", "Do I need a coat in {c}?", "Can you check the weather in {c}?", "Please check the weather in {c}.", "Check the weather for {c}.",
  "Look up the weather in {c}.", "What's the forecast for {c}?", "Forecast for {c}?", "{c} weather", "{c} weather?", "*How warm is it in {c}?", "*Could you tell me the weather in {c}?", "*I am going to {c}. What is the weather?", "*Current weather in {c}?", "What is the weather in {c} right now?"]
WX_FR = ["Quel temps fait-il à {c} ?", "Quel temps fait-il à {c} aujourd'hui ?", "Quelle est la météo à {c} ?", "Météo à {c} ?", "Météo {c}", "météo à {c}", "Quel est le temps à {c} ?", "Il fait quel temps à {c} ?", "Quelle température fait-il à {c} ?", "Est-ce qu'il pleut à {c} ?", "Pleut-il à {c} ?", "Fait-il froid à {c} ?", "Fait-il chaud à {c} ?",
  "Donne-moi la météo de {c}.", "Peux-tu me donner la météo à {c} ?", "Quel temps à {c} ?", "*Il pleut à {c} ?", "*Dis-moi le temps qu'il fait à {c}.", "Donne la météo pour {c}.", "Quelle est la température à {c} ?"]
NEXT_EN, NEXT_FR = ["And in {c}?", "And {c}?", "What about {c}?", "And what about {c}?", "*How about {c}?", "Now {c}."], ["Et à {c} ?", "Et {c} ?", "Et pour {c} ?", "*Et maintenant à {c} ?"]
WX_NOCITY_EN = ["What is the weather?", "What's the weather like?", "How is the weather?", "Weather?", "What is the weather today?", "Is it raining?", "*What's the weather today?", "Tell me the weather.", "What is the temperature?"]
WX_NOCITY_FR = ["Quel temps fait-il ?", "Quelle est la météo ?", "Météo ?", "Il fait quel temps ?", "Est-ce qu'il pleut ?", "*Quel temps fait-il aujourd'hui ?", "Donne-moi la météo."]
NOTOOL_EN, NOTOOL_FR = "I cannot tell: I was given no weather tool.", "Je ne peux pas le dire : on ne m'a pas donné d'outil météo."
WHICH_EN, WHICH_FR = "Which city?", "Dans quelle ville ?"
TDESC = ["Gets the current weather in a city.", "Get the current weather for a city", "Get the weather.", "Returns the weather of a city.", "Current weather in the given city.", "Gets the current weather in the provided location.", "Get current weather for a location", "Tells the weather of a place.", "Weather lookup", "Get the weather in a given city",
  "Donne la météo d'une ville.", "Météo actuelle d'une ville", "", "Returns the current temperature and conditions.", "Fetch the weather forecast for a city.", "Look up today's weather"]
PDESC = ["The city", "Name of the city", "The name of the city", "City name", "The city, e.g. Paris", "The city, for example Berlin", "City name, e.g. London", "The city and state, e.g. San Francisco, CA", "Name of the place", "Le nom de la ville", "La ville", "", "", "", "e.g. Tokyo", "Where"]
EXTRA = [("unit", "\"celsius\" | \"fahrenheit\"", "", True, "celsius"), ("units", "string", "metric or imperial", True, None), ("days", "number", "Number of days", True, None), ("format", "\"celsius\" | \"fahrenheit\"", "", True, None), ("country", "string", "Country code", True, None), ("lang", "string", "", True, None)]
OTHER_TOOLS = [{"name": "get_time", "description": "Gets the current time.", "params": []}, {"name": "search", "description": "Searches the web.", "params": [("query", "string", "", False, None)]},
  {"name": "get_location", "description": "Gets the location of the user.", "params": []}, {"name": "send_email", "description": "Sends an email.", "params": [("to", "string", "", False, None), ("text", "string", "", False, None)]},
  {"name": "add_event", "description": "Adds an event to the calendar.", "params": [("title", "string", "Title", False, None), ("date", "string", "", True, None)]}, {"name": "get_stock_price", "description": "Price of a stock", "params": [("symbol", "string", "e.g. ACME", False, None)]}]
COND = {"sunny": "ensoleillé", "cloudy": "nuageux", "rain": "pluie", "snow": "neige", "windy": "venteux", "foggy": "brumeux", "clear": "ciel dégagé", "storm": "orage"}

def weather_tool(r):
    d = r.choice(PDESC)
    p = [("city" if r.random() < .85 else "location", "string", d, r.random() < .08, None)]
    if p[0][0] == "location" and r.random() < .06: p.insert(r.randrange(2), ("city", "string", "", False, None))
    if r.random() < .15: p.append(r.choice(EXTRA))
    return {"name": "get_weather", "description": r.choice(TDESC), "params": p}

def weather_result(r, city):
    """(body of the tool message, temperature text or None, condition or None)"""
    n = r.randint(-15, 40)
    t = str(n) if r.random() < .85 else f"{n}.{r.randint(0, 9)}"
    cond = r.choice(list(COND)) if r.random() < .93 else None
    if r.random() < .05:
        e = r.choice(["city not found", "not found", "unknown city", "timeout"])
        return json.dumps({"error": e}, separators=(",", ":") if r.random() < .5 else None), None, None
    k = r.choice([("temperature", "condition"), ("temperature", "condition"), ("temperature", "conditions"), ("temp", "weather"), ("temp_c", "condition")])
    it = [(k[0], float(t) if "." in t else int(t))]
    if cond: it.append((k[1], cond))
    if r.random() < .2: it.append(("humidity", r.randint(10, 99)))
    if r.random() < .1: it.reverse()
    if r.random() < .4: it.insert(0, ("city", city))
    body = json.dumps(dict(it), ensure_ascii=False, separators=(",", ":") if r.random() < .6 else None)
    return body, f"{t} °C", cond

def weather_final(fr, city, temp, cond):
    if temp is None:
        return f"L'outil n'a pas donné la météo de {city}." if fr else f"The tool gave no weather for {city}."
    if fr:
        return f"À {city} : {temp}" + (f", {COND[cond]}." if cond else ".")
    return f"In {city}: {temp}" + (f", {cond}." if cond else ".")

ECHO_EN, ECHO_FR = ["Repeat: {t}", "Say: {t}", "Echo: {t}", "Repeat after me: {t}", "Copy this: {t}"], ["Répète : {t}", "Dis : {t}", "Recopie : {t}", "Répète après moi : {t}"]

INSTR = ["You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant.", "Be brief.", "Use a friendly tone.", "You are a friendly assistant. Answer briefly.", "Answer the user.", "Be concise and polite.", "You are a demo assistant.", "Tu es un assistant utile.", "Always be polite.", "You are a test."]

# ------------------------------------------------------------------------------------------------ putting it together

def pick(r, lst, held):
    """a phrasing of the split: training never sees the marked ones; held draws the marked ones where there are any"""
    if held:
        m = [x[1:] for x in lst if x[0] == "*"]
        return r.choice(m or lst)
    known = [x for x in lst if x[0] != "*"]
    return r.choice(known[:3] if r.random() < .3 else known)                  # the first three are asked most

def typo(r, w):
    i = r.randrange(1, len(w) - 1)
    k = r.random()
    if k < .35: return w[:i] + w[i + 1:]
    if k < .6: return w[:i] + w[i] + w[i:]
    if k < .85: return w[:i] + w[i + 1] + w[i] + w[i + 2:]
    return w[:i] + r.choice("abcdefghijklmnopqrstuvwxyz") + w[i + 1:]

def vary(r, tpl, held=False, exact=False, wrap=None, **slots):
    """fill a template; sometimes lower case, without its punctuation, with a typo, with a polite word. Returns text and slots as written"""
    q = r.random()
    s = tpl
    if not exact and wrap and r.random() < .12 and s[0] != "{":
        s = r.choice(wrap).replace("{}", s.rstrip(".") if r.random() < .8 else s[0].lower() + s[1:].rstrip("?!. "))
    if not exact and q < .2:
        if r.random() < .35: s = s.rstrip("?!. ")
        if r.random() < .1:
            ws = s.split(" ")
            c = [i for i, w in enumerate(ws) if len(w) > 4 and w.isalpha()]
            if c:
                i = r.choice(c); ws[i] = typo(r, ws[i]); s = " ".join(ws)
        if r.random() < .06 and s and s[-1].isalpha() and len(s) > 8: s += r.choice([" please", ", please", " svp", " stp"]) if not slots.get("c") else ""
        k = r.random()
        if k < .3:
            s = s[0].lower() + s[1:] if s[0] != "{" else s
        elif k < .5:
            s = re.sub(r"\{\w\}|[^{}]+", lambda m: m[0] if m[0][0] == "{" else m[0].lower(), s)
            if r.random() < .6: slots = {a: (b.lower() if a not in "nc" else b) for a, b in slots.items()}
        elif k < .53 and "{" not in s: s = s.upper()
        if r.random() < .05: s = s + r.choice(["!", "?", " ?", " !", "..", "?!", " :)"])
        if r.random() < .03: s = s + " "
    return s.format(**slots), slots

class Conv:
    __slots__ = ("segs", "skill", "prompt", "answer", "tools", "meta")

HELD_SUM = lambda a, b: zlib.crc32(f"{a}+{b}".encode()) % 10 == 0
HELD_TR = lambda i, s, t: zlib.crc32(f"{i}:{s}>{t}".encode()) % 16 == 3

def thought(effort, text, more):
    return "" if effort == "low" else text if effort == "medium" else text + " " + more

class Gen:
    """turns(skill) -> (user text, analysis, final, state); weather turns are made in `conv`"""
    def __init__(self, seed, split="train"):
        self.r, self.held = random.Random(f"{split}{seed}"), split == "held"

    def fr(self, p=.42):
        return self.r.random() < p

    def talk(self, e):
        r, fr = self.r, self.fr()
        k = r.choices(list(TALK), [len(x[2 if fr else 0]) ** .5 for x in TALK.values()])[0]
        en_p, en_a, fr_p, fr_a = TALK[k]
        while True:
            u, _ = vary(r, pick(r, fr_p if fr else en_p, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN)
            if self.held == (norm(u) in HELD_TALK): break                      # a polite word in front may make a held-out wording
        return u, thought(e, f"Small talk: {LABEL[k]}. Answer in {'French' if fr else 'English'}.", "Keep it short."), fr_a if fr else en_a, None

    def unknown(self, e):
        r, fr = self.r, self.fr()
        if not self.held and not fr and r.random() < .02:
            u = " ".join("".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 7))) for _ in range(r.randint(1, 3)))
        else:
            tp = TOPIC_FR if fr else TOPIC_EN
            t, v = r.sample(tp, 2)
            if not self.held and r.random() < .15: t = pseudo_city(r, False)
            if r.random() < .15 and " " in t and t.split(" ")[0] in ("the", "a", "la", "le", "les", "un", "une"): t = t.split(" ", 1)[1]
            u, _ = vary(r, pick(r, TPL_FR if fr else TPL_EN, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, t=t, u=v)
        return u, thought(e, f"I do not know this. Say so in {'French' if fr else 'English'}.", "I am only a toy."), UNK_FR if fr else UNK_EN, None

    def tr_turn(self, e, i, src, tgt, fr, digit=None):
        w = digit or WORDS[i][src]
        o = WORDS[i][tgt]
        lf = LANG_FR[LANGS[tgt]]
        a = f"{WORDS[i][0]}." if e == "low" else thought(e, f"{w} is {WORDS[i][0]}. {LANGS[tgt]}: {o}.", f"Answer in {'French' if fr else 'English'}.")
        return a, (f"« {w} » se dit « {o} » en {lf}." if fr else f"\"{w}\" in {LANGS[tgt]} is \"{o}\".")

    def translate(self, e):
        r, fr = self.r, self.fr()
        if r.random() < .12:                                        # words and languages it does not know
            if r.random() < .7:
                w, l = r.choice(OTHER_WORDS), r.randrange(4)
                l = LANG_FR[LANGS[l]] if fr else LANGS[l]
            else:
                w, l = r.choice(r.choice(WORDS)), r.choice(OTHER_LANGS_FR if fr else OTHER_LANGS)
            u, _ = vary(r, pick(r, TR_FR if fr else TR_EN, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, w=w, l=l)
            return u, thought(e, f"I cannot translate this. Say so in {'French' if fr else 'English'}.", "I am only a toy."), NOTR_FR if fr else NOTR_EN, None
        while True:
            i, s, t = r.randrange(len(WORDS)), r.randrange(4), r.randrange(4)
            if s != t and HELD_TR(i, s, t) == self.held: break
        digit = None
        if not self.held and r.random() < .12:
            digit = r.choice(list(DIGITS)); i = DIGITS[digit]
        tpls = TR_FR if fr else TR_EN
        # what makes a triple held out is the triple: its phrasing may be a known one
        u, _ = vary(r, pick(r, tpls, self.held and r.random() < .3), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, w=digit or WORDS[i][s], l=LANG_FR[LANGS[t]] if fr else LANGS[t])
        a, f = self.tr_turn(e, i, s, t, fr, digit)
        return u, a, f, ("tr", i, s, t, fr)

    def follow(self, e):
        """a translation that was asked for, then the same word in another language; in the held-out split the second is a held-out one"""
        r, fr = self.r, self.fr()
        wrap = WRAP_FR if fr else WRAP_EN
        while True:
            i, s = r.randrange(len(WORDS)), r.randrange(4)
            t, t2 = r.sample([x for x in range(4) if x != s], 2)
            if HELD_TR(i, s, t2) == self.held and (self.held or not HELD_TR(i, s, t)): break
        name = lambda x: LANG_FR[LANGS[x]] if fr else LANGS[x]
        u, _ = vary(r, pick(r, TR_FR if fr else TR_EN, False), exact=self.held, wrap=wrap, w=WORDS[i][s], l=name(t))
        _, f = self.tr_turn(e, i, s, t, fr)
        v, _ = vary(r, r.choice(["Et en {l} ?", "En {l} ?", "Et en {l}"] if fr else ["And in {l}?", "In {l}?", "What about {l}?", "and in {l}"]), exact=self.held, wrap=wrap, l=name(t2))
        a, f2 = self.tr_turn(e, i, s, t2, fr)
        return [(user_text(u) + "<|start|>assistant", False), (final_text("", f, True), False), (user_text(v) + "<|start|>assistant", False), (final_text(a, f2), True)]

    def add(self, e):
        r, fr = self.r, self.fr(.35)
        while True:
            a = r.randint(0, 99) if r.random() < .88 else r.randint(0, 9)
            b = r.randint(0, 99) if r.random() < .88 else r.randint(0, 9)
            if HELD_SUM(a, b) == self.held: break
        u, _ = vary(r, pick(r, ADD_FR if fr else ADD_EN, self.held and r.random() < .25), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, a=str(a), b=str(b))
        return u, add_steps(a, b, e), f"{a} + {b} font {a + b}." if fr else f"{a} + {b} = {a + b}.", ("add", fr)

    def arith(self, e):
        r, fr = self.r, self.fr(.35)
        n = lambda: str(r.randint(0, 99))
        L = lambda: str(r.choice([r.randint(100, 999), r.randint(100, 999), r.randint(1000, 99999)]))
        if not self.held and r.random() < .45:                                  # wordings of sums, so that it is the numbers that tell; never those held out below
            tpl, x = r.choice([t for t in (ADD_FR if fr else ADD_EN) if not t.startswith(("*", "How much is", "Que vaut"))]), [L(), r.choice([n, L])()]
            r.shuffle(x)
            u, _ = vary(r, tpl, wrap=WRAP_FR if fr else WRAP_EN, a=x[0], b=x[1])
        else: u, _ = vary(r, pick(r, ARITH_FR if fr else ARITH_EN, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, a=n(), b=n(), c=n(), L=L(), M=L())
        return u, thought(e, f"Not a sum of two small numbers. Say so in {'French' if fr else 'English'}.", "I am only a toy."), NOADD_FR if fr else NOADD_EN, None

    def code(self, e):
        r, fr = self.r, self.fr(.33)
        n = r.choice(list(CODE))
        if r.random() < .14:
            if r.random() < .7: u, _ = vary(r, pick(r, CODE_FR if fr else CODE_EN, False), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, d=pick(r, OTHER_CODE_FR if fr else OTHER_CODE_EN, self.held))
            else: u, _ = vary(r, pick(r, CODE_NAME_FR if fr else CODE_NAME_EN, False), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, n=pick(r, OTHER_NAME, self.held))
            return u, thought(e, f"I do not know this function. Say so in {'French' if fr else 'English'}.", "I am only a toy."), NOCODE_FR if fr else NOCODE_EN, None
        if r.random() < .35:
            nm = n if r.random() < .7 else n.replace("_", " ")
            u, _ = vary(r, pick(r, CODE_NAME_FR if fr else CODE_NAME_EN, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, n=nm)
        else:
            h = self.held and r.random() < .5
            u, _ = vary(r, pick(r, CODE_FR if fr else CODE_EN, self.held and not h), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, d=pick(r, CODE[n][2 if fr else 1], h))
        return u, thought(e, f"Write the Python function {n}.", "Only the code."), f"```python\n{CODE[n][0]}\n```", None

    def echo(self, e):
        """repeat a short text: dense practice for copying, which sums, cities and translations need"""
        r, fr = self.r, self.fr()
        kind = r.random()
        w = lambda: r.choice([lambda: pseudo_city(r, self.held), lambda: str(r.randint(0, 99)), lambda: str(r.randint(0, 999999)), lambda: r.choice(r.choice(WORDS)), lambda: r.choice(OTHER_WORDS),
            lambda: "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(1, 6)))])()
        x = " ".join(w() for _ in range(r.randint(1, 2))) if kind < .6 else " ".join(str(r.randint(0, 99)) for _ in range(r.randint(1, 3))) if kind < .75 else " ".join(pseudo_city(r, self.held) for _ in range(r.randint(1, 2)))
        u = pick(r, ECHO_FR if fr else ECHO_EN, False).format(t=x)
        return u, thought(e, "Repeat the text.", "Nothing else."), x, None

    def city(self):
        r = self.r
        if r.random() < .5:
            return r.choice(HELD_CITIES if self.held else CITIES)
        return pseudo_city(r, self.held)

    def weather(self, effort, tool, past=False, nxt=None):
        """segments of one weather turn; tool None: no tool is there"""
        r = self.r
        fr = self.fr() if nxt is None else nxt
        say = "French" if fr else "English"
        if r.random() < .06 and nxt is None:
            u, _ = vary(r, pick(r, WX_NOCITY_FR if fr else WX_NOCITY_EN, self.held), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN)
            if tool: a, f = thought(effort, f"No city was named. Ask in {say}.", "I need one for get_weather."), WHICH_FR if fr else WHICH_EN
            else: a, f = thought(effort, f"I have no weather tool. Say so in {say}.", "I must not guess."), NOTOOL_FR if fr else NOTOOL_EN
            return [(user_text(u) + "<|start|>assistant", False), (final_text(a, f, past), not past)], fr
        tp = (NEXT_FR if fr else NEXT_EN) if nxt is not None else (WX_FR if fr else WX_EN)
        u, sl = vary(r, pick(r, tp, self.held and r.random() < .3), exact=self.held, wrap=WRAP_FR if fr else WRAP_EN, c=self.city())
        c = sl["c"]
        out = [(user_text(u) + "<|start|>assistant", False)]
        if not tool:
            return out + [(final_text(thought(effort, f"I have no weather tool. Say so in {say}.", "I must not guess."), NOTOOL_FR if fr else NOTOOL_EN, past), not past)], fr
        names = [p[0] for p in tool["params"]]
        key = "city" if "city" in names else "location"
        a = thought(effort, f"The user asks about {c}. Call get_weather.", f"The parameter is {key}.")
        out.append((call_text(a, "get_weather", json.dumps({key: c}, ensure_ascii=False, separators=(",", ":")), past), not past))
        body, t, cond = weather_result(r, c)
        out.append((result_text("get_weather", body) + "<|start|>assistant", False))
        out.append((final_text(thought(effort, f"I have the result. Answer in {say}.", "Only what the tool said."), weather_final(fr, c, t, cond), past), not past))
        return out, fr

    SKILLS = [("add", .24), ("weather", .20), ("translate", .14), ("talk", .22), ("code", .07), ("unknown", .08), ("arith", .05), ("echo", .02), ("follow", .03)]

    def plan(self, skill=None):
        """(skill, needs tools)"""
        r = self.r
        s = skill or r.choices([k for k, _ in self.SKILLS], [w for _, w in self.SKILLS])[0]
        return s

    def developer(self, tools_on):
        """(instructions, tools, the weather tool among them)"""
        r, tool, tools = self.r, None, []
        if tools_on:
            if r.random() < .9:
                tool = weather_tool(r); tools = [tool]
                if r.random() < .1: tools.insert(r.randrange(2), r.choice(OTHER_TOOLS))
            else:
                tools = [r.choice(OTHER_TOOLS)]
        return r.choice(INSTR) if r.random() < (.5 if tools_on else .22) else None, tools, tool

    def conv(self, effort, tools_on, date, dev, skill=None, turns=None):
        """what stands behind the system and developer messages"""
        r, tool = self.r, dev[2]
        c = Conv()
        segs = []
        s = skill or self.plan()
        if tools_on and not skill and r.random() < .72: s = "weather"
        if not tools_on and s == "weather" and not skill and r.random() < .82: s = r.choice(["talk", "talk", "talk", "translate", "unknown", "add"])
        n = turns if turns is not None else (0 if r.random() < .88 else 1 if r.random() < .8 else 2)
        state = None
        for _ in range(n):                                                     # past turns: no analysis, nothing to learn
            p = s if r.random() < .3 else self.plan()
            if p == "follow": p = "translate"
            if p == "weather" and not tools_on and r.random() < .8: p = "talk"
            if p == "weather":
                g, fr = self.weather(effort, tool, past=True)
                state = ("wx", fr)
            else:
                u, _, f, state = getattr(self, p)(effort)
                g = [(user_text(u) + "<|start|>assistant", False), (final_text("", f, True), False)]
            segs += g
        if s == "follow":
            c.skill, c.segs = "follow", segs + self.follow(effort)
            return c
        if state and state[0] == "wx" and skill in (None, "weather") and r.random() < .7:
            g, _ = self.weather(effort, tool, nxt=state[1])
            c.skill, c.segs = "weather" if tool else "notool", segs + g
            return c
        if s == "weather":
            g, _ = self.weather(effort, tool)
            c.skill = "weather" if tool else "notool"
            c.segs = segs + g
            return c
        u, a, f, _ = getattr(self, s)(effort)
        c.skill = s
        c.segs = segs + [(user_text(u) + "<|start|>assistant", False), (final_text(a, f), True)]
        return c

def random_date(r):
    if r.random() < .15: return None
    return f"{r.randint(2024, 2029)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"

def pool(gen, n):
    """n conversations over nine prefixes (system and developer message): [(prefix text, with tools?, Conv)]"""
    r = gen.r
    pre = []
    for t, es in ((False, ["low", "medium", "medium", "high"]), (True, ["low", "medium", "medium", "medium", "high"])):
        for e in es:
            d, dev = random_date(r), gen.developer(t)
            pre.append((e, t, d, dev, system_text(e, t, d) + developer_text(dev[0], dev[1])))
    w = [.16, .155, .155, .15, .07, .08, .08, .08, .07]
    out = []
    for _ in range(n):
        e, t, d, dev, text = r.choices(pre, w)[0]
        out.append((text, t, gen.conv(e, t, d, dev)))
    return out

if __name__ == "__main__":
    for p, _, c in pool(Gen(0), 60):
        print(c.skill, "|", p[-70:].replace("\n", "\\n"), "|", "".join(f"[[{t}]]" if l else t for t, l in c.segs), "\n")
