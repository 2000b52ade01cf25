from modulate import Answer, Assistant, Chat, RawSamples, TextStream, Usage, load

# A run's folder, a saved modulation's folder, or its repository on the hub.
vqa: Assistant = load("my-modulation")

answer: Answer = vqa.ask("kitchen.mp4", "What am I looking at?", gaze="gaze.csv", at=3.0)
print(answer.text)  # beside it, what the host says without residuals:
print(answer.without_signal.text)
print(answer.report)  # tokens modified, steps with gaze, size of the residuals

# Options get probabilities. A signal may also come as samples of a recorder, here 60 a second.
look = RawSamples([(0.4, 0.6)] * 60, rate=60.0)
choice = vqa.ask("photo.jpg", "Which is it?", options=["plate", "bowl"], gaze=look)
print(choice.probabilities, choice.without_signal.probabilities)

# Text as it is generated, many questions in batches, and a conversation.
stream: TextStream = vqa.ask("kitchen.mp4", "And the color?", gaze="gaze.csv", stream=True)
for piece in stream:
    print(piece, end="", flush=True)
print(stream.answer.is_complete)
many = vqa.ask_many(
    [
        {"media": "kitchen.mp4", "question": "What is it?", "gaze": "gaze.csv", "at": t}
        for t in (1, 2)
    ]
)
chat: Chat = vqa.chat("kitchen.mp4", gaze="gaze.csv")
chat.say("What am I looking at?")
print(chat.say("And before that?").text)

# Around a model that is loaded already; `usage` and `backbone` default to what was saved.
usage: Usage = vqa.usage
other = Assistant(vqa.host, vqa.processor, vqa.modulation, backbone=vqa.backbone, usage=usage)
