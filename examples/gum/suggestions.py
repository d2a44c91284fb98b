"""What both triggers do: ask the model, keep its suggestions, mark them as delivered."""

from __future__ import annotations

from datetime import datetime

from gum_ai import Base, get_schema
from openai import AsyncOpenAI
from pydantic import BaseModel
from sqlalchemy import DateTime, ForeignKey, String, Text, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column


class Suggestion(Base):
    """In GUM's own metadata: GUM creates the table when it connects, also in a database that is there already."""

    __tablename__ = "suggestions"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(String(50))
    rationale: Mapped[str] = mapped_column(Text)
    expected_utility: Mapped[float]
    probability_useful: Mapped[float]
    trigger_proposition_id: Mapped[int | None] = mapped_column(ForeignKey("propositions.id", ondelete="SET NULL"))
    batch_id: Mapped[str] = mapped_column(String(36), index=True)
    delivered: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )


class Draft(BaseModel):
    title: str
    description: str
    rationale: str
    expected_utility: float
    probability_useful: float


class Drafts(BaseModel):
    suggestions: list[Draft]


class SuggestionEngine:
    """
    Args:
        client: speaks to the model.
        model: its name.
    """

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model

    async def suggest(self, session: AsyncSession, about: str, category: str, batch_id: str, **row: object) -> None:
        """Commits three times, as its caller's session must allow."""
        # The connection goes back to the pool: the model takes its time.
        await session.commit()
        suggestions = [
            Suggestion(category=category, batch_id=batch_id, **draft.model_dump(), **row)
            for draft in await self._ask(about)
        ]
        session.add_all(suggestions)
        await session.commit()
        for suggestion in suggestions:
            suggestion.delivered = True
        await session.commit()

    async def _ask(self, about: str) -> list[Draft]:
        answer = await self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": f"What would help this person now?\n\n{about}"}],
            response_format=get_schema(Drafts.model_json_schema()),
        )
        return Drafts.model_validate_json(answer.choices[0].message.content or "").suggestions
