import asyncpg
import httpx


async def test_postgres_takes_connections(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


def test_prefect_server_is_ready(prefect_api_url: str) -> None:
    assert httpx.get(f"{prefect_api_url}/ready").status_code == 200
